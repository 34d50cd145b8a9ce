"""The verdict: one sentence on how much int8 costs and where to look first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from profiler.records import Comparison, Finding, LayerRecord, StageMetric

_HEALTHY_DB, _BAD_DB = 20.0, 10.0
_NORMAL_LOSS = 0.01  # of the metric, relative: what int8 usually costs
_BAD_LOSS = 0.1  # published rule: below 90 % of the float metric, debug
_STATE_WITHOUT_EFFECT = "ST4"  # the report is made on a copy in the right state


def verdict(
    comparisons: Sequence[Comparison],
    findings: Sequence[Finding],
    stage_metrics: Sequence[StageMetric],
    missing: str = "",
) -> str:
    """One sentence: how good int8 is, what it costs, and the first thing to do.

    Args:
        comparisons: the compared pairs of stages.
        findings: ranked.
        stage_metrics: what the user's `evaluate` gave.
        missing: what the run could not do, in a few words.
    """
    state_error = next((f for f in findings if f.id.startswith("ST") and f.severity == "E"), None)
    if state_error is not None and state_error.id != _STATE_WITHOUT_EFFECT:
        what = f"{state_error.id}, {_lower(state_error.title)}"
        return f"State mistake: {what}; no number below counts until that is repaired."
    sentences = (
        _metric_sentence(stage_metrics),
        _output_sentence(comparisons),
        _contradiction(comparisons, stage_metrics),
    )
    facts = "; ".join(part for part in (*sentences, missing) if part)
    return f"{_grade(comparisons, findings, stage_metrics)}: {facts}; {_finding_sentence(findings)}."


def output_sqnr_db(comparison: Comparison) -> float | None:
    """SQNR of the worst model output in dB, or None if no output was compared."""
    worst = _worst_output(comparison)
    return worst.accumulated.sqnr_db if worst is not None and worst.accumulated is not None else None


def _worst_output(comparison: Comparison) -> LayerRecord | None:
    outputs = [x for x in comparison.layers if x.is_output and x.accumulated is not None]
    return min(outputs, key=lambda x: x.accumulated.sqnr_db if x.accumulated is not None else math.inf, default=None)


def _grade(comparisons: Sequence[Comparison], findings: Sequence[Finding], stage_metrics: Sequence[StageMetric]) -> str:
    """One word for the worst of the comparisons; only a model without loss and without findings is healthy."""
    values = [value for c in comparisons if (value := output_sqnr_db(c)) is not None]
    if any(f.id == _STATE_WITHOUT_EFFECT for f in findings):
        return "State mistake"
    if any(math.isnan(m.value) for m in stage_metrics):
        return "Broken"
    if not values:
        return "Unknown"
    if min(values) < _BAD_DB or _relative_change(stage_metrics) > _BAD_LOSS:
        return "Bad"
    if min(values) < _HEALTHY_DB or _relative_change(stage_metrics) > _NORMAL_LOSS:
        return "Suspicious"
    return "Small error" if _serious(findings) else "Healthy"


def _metric_sentence(stage_metrics: Sequence[StageMetric]) -> str:
    """What `evaluate` gave, first stage against last, with the change in its own points."""
    if not stage_metrics:
        return ""
    first, last = stage_metrics[0], stage_metrics[-1]
    broken = [m.stage for m in stage_metrics if math.isnan(m.value)]
    if broken:
        return f"the metric is not a number (NaN) in {' and '.join(broken)}"
    if len(stage_metrics) == 1 or not (math.isfinite(first.value) and math.isfinite(last.value)):
        return "the metric is " + ", ".join(f"{m.value:.4g} ({m.stage})" for m in stage_metrics)
    start, end, change = _rounded(first.value, last.value)
    if float(change) == 0:
        return f"the metric stays at {start} from {first.stage} to {last.stage}"
    verb = "falls" if last.value < first.value else "rises"
    return f"the metric {verb} from {start} ({first.stage}) to {end} ({last.stage}), {change}"


def _rounded(first: float, last: float) -> tuple[str, str, str]:
    """Both values with four digits, and their difference with as many decimals."""
    size = max(abs(first), abs(last))
    decimals = max(0, 3 - math.floor(math.log10(size))) if size > 0 else 0
    start, end = round(first, decimals), round(last, decimals)
    return f"{start:.{decimals}f}", f"{end:.{decimals}f}", f"{end - start:+.{decimals}f}"


def _relative_change(stage_metrics: Sequence[StageMetric]) -> float:
    if len(stage_metrics) < 2 or stage_metrics[0].value == 0:
        return 0.0
    first, last = stage_metrics[0].value, stage_metrics[-1].value
    return abs(last - first) / abs(first)


def _contradiction(comparisons: Sequence[Comparison], stage_metrics: Sequence[StageMetric]) -> str:
    """Good outputs and a bad metric: the two were not measured on the same kind of data."""
    values = [value for c in comparisons if (value := output_sqnr_db(c)) is not None]
    is_bad = _relative_change(stage_metrics) > _BAD_LOSS
    if not is_bad or not values or min(values) < _HEALTHY_DB:
        return ""
    return (
        "the outputs agree on the batches given but not on the data of evaluate: calibrate with data and preprocessing "
        "like its"
    )


def _output_sentence(comparisons: Sequence[Comparison]) -> str:
    texts = [_comparison_text(comparison) for comparison in comparisons]
    return "; ".join(texts) if texts else "nothing was compared"


def _comparison_text(comparison: Comparison) -> str:
    names = f"{comparison.reference.stage} -> {comparison.test.stage}"
    worst, value = _worst_output(comparison), output_sqnr_db(comparison)
    if worst is None or value is None:
        return f"no output of {names} could be compared"
    what = "output" if len(comparison.outputs) < 2 else f"worst of {len(comparison.outputs)} outputs ({worst.name})"
    if math.isinf(value):
        return f"{what} equal in {names}" if value > 0 else f"{what} all error in {names} (the reference is 0)"
    return f"{what} SQNR {math.floor(10 * value + 1e-9) / 10:.1f} dB ({names})"


def _finding_sentence(findings: Sequence[Finding]) -> str:
    serious = _serious(findings)
    if not serious:
        return "no finding asks for a change"
    first = serious[0]
    where = f" at {first.op}" if first.op else ""
    count = "1 finding" if len(serious) == 1 else f"{len(serious)} findings, first"
    return f"{count}: {first.id}{where}, {_lower(first.title)}"


def _serious(findings: Sequence[Finding]) -> list[Finding]:
    return [f for f in findings if f.severity in ("E", "W")]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
