"""The verdict: one sentence on how much int8 costs and where to look first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from profiler.records import Comparison, Finding, StageMetric

_HEALTHY_DB, _BAD_DB = 20.0, 10.0


def verdict(
    comparisons: Sequence[Comparison], findings: Sequence[Finding], stage_metrics: Sequence[StageMetric]
) -> str:
    """One sentence: the state of the outputs, the loss if it was measured, and the first thing to do."""
    state_error = next((f for f in findings if f.id.startswith("ST") and f.severity == "E"), None)
    if state_error is not None:
        return f"State mistake: {_lower(state_error.title)}; every number below depends on it."
    parts = [_output_sentence(comparisons), _metric_sentence(stage_metrics)]
    serious = [f for f in findings if f.severity in ("E", "W")]
    sentence = "; ".join(part for part in parts if part)
    if not serious:
        return f"Healthy: {sentence}; no finding asks for a change."
    first = serious[0]
    where = f" at {first.op}" if first.op else ""
    count = f"{len(serious)} finding{'s' if len(serious) > 1 else ''}"
    return f"{_grade(comparisons)}: {sentence}; {count}, first {first.id}{where}: {_lower(first.title)}."


def output_sqnr_db(comparison: Comparison) -> float | None:
    """SQNR of the worst model output in dB, or None if no output was compared."""
    values = [x.accumulated.sqnr_db for x in comparison.layers if x.is_output and x.accumulated is not None]
    return min(values) if values else None


def _grade(comparisons: Sequence[Comparison]) -> str:
    value = output_sqnr_db(comparisons[0]) if comparisons else None
    if value is None:
        return "Unknown"
    if value >= _HEALTHY_DB:
        return "Small error"
    return "Suspicious" if value >= _BAD_DB else "Bad"


def _output_sentence(comparisons: Sequence[Comparison]) -> str:
    texts = []
    for comparison in comparisons:
        value = output_sqnr_db(comparison)
        names = f"{comparison.reference.stage} -> {comparison.test.stage}"
        if value is None:
            texts.append(f"no output of {names} could be compared")
        elif math.isinf(value):
            texts.append(f"the outputs of {names} are {'equal' if value > 0 else 'all error'}")
        else:
            texts.append(f"output SQNR {names} is {value:.1f} dB")
    return ", ".join(texts)


def _metric_sentence(stage_metrics: Sequence[StageMetric]) -> str:
    return "metric " + ", ".join(f"{m.stage} {m.value:.4g}" for m in stage_metrics) if stage_metrics else ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
