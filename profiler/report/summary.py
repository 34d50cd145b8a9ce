"""What the first screen of the page says: stage metrics, output errors, findings in order."""

from __future__ import annotations

import math
from dataclasses import dataclass

from profiler.records import COST_TEXT, SEVERITY_ORDER, Comparison, Evidence, Finding, LayerRecord, ReportData
from profiler.report.limits import Limits
from profiler.report.numbers import decimals, significant

SEVERITY_TEXT = {"E": "Error", "W": "Warning", "I": "Note"}
NUM_OUTPUT_TILES = 6


@dataclass(frozen=True)
class Tile:
    """One number of the first screen. `tone` is good, bad or empty."""

    label: str
    value: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class EvidenceView:
    """One number behind a finding, as text."""

    name: str
    value: str
    unit: str
    limit: str


@dataclass(frozen=True)
class FindingView:
    """A finding as the page shows it. `row` is the op's row in the main comparison, -1 where it has none."""

    number: int
    finding: Finding
    severity_text: str
    cost_text: str
    gain: str
    evidence: tuple[EvidenceView, ...]
    row: int


def stage_tiles(data: ReportData) -> tuple[Tile, ...]:
    """Gives what `evaluate` returned per stage, and the change against the first stage."""
    tiles = []
    for number, metric in enumerate(data.stage_metrics):
        change = metric.value - data.stage_metrics[0].value
        sign = "+" if change > 0 else ""
        note = "reference" if number == 0 else f"{sign}{significant(change, 3)} against {data.stage_metrics[0].stage}"
        tiles.append(Tile(f"{metric.stage} metric", _metric_text(metric.value), note))
    return tuple(tiles)


def output_tiles(comparison: Comparison, limits: Limits) -> tuple[Tile, ...]:
    """Gives SQNR in dB at each output of the network, accumulated over all ops."""
    layers = [layer for layer in comparison.layers if layer.is_output or layer.name in comparison.outputs]
    pair = f"{comparison.reference.stage} → {comparison.test.stage}"
    return tuple(_output_tile(layer, pair, limits) for layer in layers[:NUM_OUTPUT_TILES])


def finding_views(data: ReportData) -> tuple[FindingView, ...]:
    """Gives the findings by severity, else in the order of the report."""
    rows = rows_of_ops(data.main) if data.main else {}
    return tuple(_finding_view(number, finding, rows) for number, finding in enumerate(ordered_findings(data)))


def ordered_findings(data: ReportData) -> tuple[Finding, ...]:
    """Gives the findings by severity; within one severity the report's order holds."""
    return tuple(sorted(data.findings, key=lambda finding: SEVERITY_ORDER.index(finding.severity)))


def severity_counts(data: ReportData) -> dict[str, int]:
    """Gives how many findings of each severity there are, by the severity's text; none is left out."""
    counts = {text: sum(item.severity == key for item in data.findings) for key, text in SEVERITY_TEXT.items()}
    return {text: count for text, count in counts.items() if count}


def rows_of_ops(comparison: Comparison) -> dict[str, int]:
    """Gives the row of each op call by its name, and of each op by the row of its first call."""
    rows: dict[str, int] = {}
    for row, layer in enumerate(comparison.layers):
        rows[layer.name] = row
    for row, layer in enumerate(comparison.layers):
        rows.setdefault(layer.op_name, row)
    return rows


def _metric_text(value: float) -> str:
    """Rounded plainly, but never up to a perfect score."""
    text = significant(value)
    is_claimed_perfect = value < float(text) and float(text) in (1.0, 100.0)
    return significant(value, 4, "up") if is_claimed_perfect else text


def _output_tile(layer: LayerRecord, pair: str, limits: Limits) -> Tile:
    if layer.accumulated is None:
        return Tile(layer.name, "not compared", layer.reason or layer.status, "bad")
    sqnr = layer.accumulated.sqnr_db
    if math.isnan(sqnr):
        return Tile(layer.name, "NaN", f"SQNR, {pair}", "bad")
    value = "identical" if sqnr == math.inf else f"{decimals(sqnr, 1, 'up')} dB"
    return Tile(layer.name, value, f"SQNR, {pair}", "good" if sqnr >= limits.sqnr_db else "bad")


def _finding_view(number: int, finding: Finding, rows: dict[str, int]) -> FindingView:
    gains = [f"{finding.measured_gain} measured"] if finding.measured_gain else []
    if finding.expected_gain_db is not None:
        gains.append(f"{decimals(finding.expected_gain_db, 1, 'up')} dB expected")
    return FindingView(
        number=number,
        finding=finding,
        severity_text=SEVERITY_TEXT[finding.severity],
        cost_text=COST_TEXT[finding.cost],
        gain=", ".join(gains),
        evidence=tuple(_evidence_view(item) for item in finding.evidence),
        row=rows.get(finding.op, -1),
    )


def _evidence_view(item: Evidence) -> EvidenceView:
    value = significant(item.value) if isinstance(item.value, float) else str(item.value)
    return EvidenceView(item.name, value, item.unit, item.limit)
