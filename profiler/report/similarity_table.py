"""The similarity table of the page: every op call, the ones that need work first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from profiler.records import SEVERITY_ORDER, Comparison, Finding, LayerRecord
from profiler.report.cells import (
    HEALTHY,
    INHERITED,
    MODEL_ORDER,
    NOT_COMPARED,
    SHOWN,
    Cell,
    Column,
    Order,
    PageTable,
    Texts,
    exceeds,
    ranked,
)
from profiler.report.limits import Limits
from profiler.report.tables import qscale

_INJECTED = frozenset({3, 9})  # the columns of what the op itself adds


def similarity_columns(limits: Limits) -> tuple[Column, ...]:
    """Gives the columns."""
    sqnr, cosine, op_error, steps = limits.sqnr_db, limits.cosine, limits.atol_scales, "output scales"
    return (
        Column("#", "Position in forward order.", is_number=True),
        Column("Op", "Name of the op; (i) is call i + 1 of a shared module.", is_op=True),
        Column("Type", "Type of the op in the later stage."),
        Column("Op SQNR", "Injected: this op against the reference op on the same input.", "dB", "up", sqnr, True),
        Column("SQNR", "Accumulated: holds what came from earlier ops too.", "dB", "up", sqnr, True),
        Column("Similarity", "Cosine of the two outputs; a wrong scale does not lower it.", "", "up", cosine, True),
        Column("qscale", "Scale of the output: one step of its integer codes.", is_number=True),
        Column("Acc error", "Largest absolute difference of the two outputs.", "real value", "down", None, True),
        Column("Acc error", "Largest difference in steps of the output.", steps, "down", None, True),
        Column(
            "Op error",
            "Largest difference on the same input; a few steps are healthy.",
            steps,
            "down",
            op_error,
            True,
        ),
        Column("Kind", "What the error is: clipped, rounded, both, or propagated from before."),
    )


def similarity_table(comparison: Comparison, findings: Sequence[Finding], limits: Limits, texts: Texts) -> PageTable:
    """Gives one row per op call.

    Rows without a finding of severity E or W are folded when they were not compared, when nothing is over a limit
    (healthy), or when only the accumulated error is (inherited from earlier ops). The order "worst" is by the work
    needed: severity of the op's own findings, then injected SQNR.
    """
    columns = similarity_columns(limits)
    table = PageTable(columns)
    severities = _severities(findings)
    for row, layer in enumerate(comparison.layers):
        values = _values(layer)
        flags = [(row, position) for position, value in values.items() if exceeds(value, columns[position])]
        table.rows.append(_cells(layer, values, columns, texts))
        table.flags += flags
        over = {position for _, position in flags}
        table.folds.append(SHOWN if _severity(layer, severities) < 2 else _fold(layer, over))
        table.ops.append(row)
    table.orders = (Order("worst", "worst first", work_order(comparison.layers, findings)), MODEL_ORDER)
    return table


def work_order(layers: Sequence[LayerRecord], findings: Sequence[Finding]) -> tuple[int, ...]:
    """Gives the row numbers by the work needed: severity of the op's own findings, then injected SQNR."""
    severities = _severities(findings)
    return ranked(len(layers), lambda row: _work(layers[row], severities))


def missing_reason(layer: LayerRecord) -> str:
    """Says why an op call has no numbers."""
    if layer.status != "compared":
        return f"{layer.status.replace('_', ' ')}: {layer.reason}".removesuffix(": ")
    return layer.reason or "not measured"


def scale_reason(layer: LayerRecord) -> str:
    """Says why an op call has no single output scale."""
    if layer.status not in ("compared", "shape_mismatch"):
        return missing_reason(layer)
    if layer.qparams is None:
        return "the output is not quantized"
    if not layer.qparams.is_calibrated:
        return "not calibrated"
    return "one scale per channel" if layer.qparams.is_per_channel else "no scale was found"


def _values(layer: LayerRecord) -> dict[int, float | None]:
    pair, own = layer.accumulated, layer.injected
    return {
        3: own.sqnr_db if own else None,
        4: pair.sqnr_db if pair else None,
        5: pair.cosine if pair else None,
        6: qscale(layer) if layer.qparams and layer.qparams.is_calibrated else None,
        7: pair.atol if pair else None,
        8: pair.atol_scales if pair else None,
        9: own.atol_scales if own else None,
    }


def _cells(layer: LayerRecord, values: dict[int, float | None], columns: Sequence[Column], texts: Texts) -> list[Cell]:
    reason, scale = missing_reason(layer), scale_reason(layer)
    own = "not measured on the same input" if layer.status == "compared" else reason
    reasons = {3: own, 6: scale, 8: scale if layer.accumulated else reason, 9: scale if layer.injected else own}
    numbers = [texts.number(value, columns[key], reasons.get(key, reason)) for key, value in values.items()]
    kind = texts.shared(layer.kind) if layer.kind else texts.missing(reason)
    return [str(layer.index), texts.shared(layer.name), texts.shared(layer.type_name), *numbers, kind]


def _fold(layer: LayerRecord, over: set[int]) -> str:
    """Says why a row without findings can be folded; `over` holds the columns whose limit it exceeds."""
    if layer.status == "shape_mismatch":
        return SHOWN
    if layer.status != "compared":
        return NOT_COMPARED
    if over and (layer.injected is None or over & _INJECTED):
        return SHOWN
    return INHERITED if over else HEALTHY


def _severities(findings: Sequence[Finding]) -> dict[str, int]:
    worst: dict[str, int] = {}
    for finding in findings:
        if finding.origin == "own":
            rank = SEVERITY_ORDER.index(finding.severity)
            worst[finding.op] = min(rank, worst.get(finding.op, rank))
    return worst


def _severity(layer: LayerRecord, severities: dict[str, int]) -> int:
    none = len(SEVERITY_ORDER)
    return min(severities.get(layer.name, none), severities.get(layer.op_name, none))


def _work(layer: LayerRecord, severities: dict[str, int]) -> tuple[float, ...]:
    """The rank of an op call by the work it needs; NaN is worse than any number, no number comes last."""
    injected = layer.injected.sqnr_db if layer.injected else math.inf
    accumulated = layer.accumulated.sqnr_db if layer.accumulated else math.inf
    keys = [-math.inf if math.isnan(value) else value for value in (injected, accumulated)]
    return (_severity(layer, severities), *keys)
