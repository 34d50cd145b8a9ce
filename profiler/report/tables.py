"""Turns records into pandas tables, one function per table; the columns hold plain values, not text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from profiler.errors import ReportError
from profiler.records import Comparison, LayerRecord, PairStats, ReportData, TensorRecord

_PAIR_FIELDS = ("cosine", "sqnr_db", "mse", "l1", "atol", "kl", "atol_scales", "rms_lsb")
_SIMILARITY = (
    "index",
    "name",
    "type",
    "status",
    "reason",
    "similarity",
    "qscale",
    "atol",
    "atol_scales",
    "op_error_scales",
)


def similarity(comparison: Comparison) -> pd.DataFrame:
    """Gives one row per op call in forward order.

    `similarity` is the cosine; `qscale` the test output's scale where it has a single one; `atol` the largest absolute
    error, `atol_scales` the same in output scales; `op_error_scales` the error on the same input (injected) in output
    scales. Rows that were not compared have None there and their `reason`.
    """
    return _frame(_SIMILARITY, [_similarity_row(layer) for layer in comparison.layers])


def ordered_by_op_error(comparison: Comparison) -> pd.DataFrame:
    """Gives the similarity rows by `op_error_scales`, descending; NaN comes first, rows without a value last."""
    rows = sorted((_similarity_row(layer) for layer in comparison.layers), key=lambda row: _descending(row[-1]))
    return _frame(_SIMILARITY, rows)


def layers(comparison: Comparison) -> pd.DataFrame:
    """Gives everything that is known about each op call, one column per fact, in forward order."""
    columns = ["index", "name", "op_name", "call", "type", "status", "reason", "kind", "source", "qscale", "dtype"]
    columns += [f"{prefix}_{field}" for prefix in ("accumulated", "injected") for field in _PAIR_FIELDS]
    columns += ["codes_per_std", "clip_ratio", "own_sqnr_db", "num_params", "is_output"]
    return _frame(columns, [_layer_row(layer) for layer in comparison.layers])


def statistic(tensors: Sequence[TensorRecord]) -> pd.DataFrame:
    """Gives min, max, mean, var, scale and dtype of each tensor of one model, in forward order."""
    columns = (
        "index",
        "name",
        "type",
        "attr",
        "min",
        "max",
        "mean",
        "var",
        "scale",
        "dtype",
        "shape",
        "num_nan",
        "num_inf",
    )
    return _frame(columns, [_statistic_row(tensor) for tensor in tensors])


def statistic_by_range(tensors: Sequence[TensorRecord]) -> pd.DataFrame:
    """Gives the statistic rows by max(abs(min), abs(max)), descending; NaN comes first."""
    return statistic(sorted(tensors, key=range_rank))


def non_finite(tensors: Sequence[TensorRecord]) -> pd.DataFrame:
    """Gives the tensors that hold NaN or Inf, with how many of each."""
    rows = [
        (tensor.index, tensor.name, tensor.type_name, tensor.attr, _non_finite_text(tensor))
        for tensor in tensors
        if tensor.stats.num_nan or tensor.stats.num_inf
    ]
    return _frame(("index", "name", "type", "attr", "nan_or_inf"), rows)


def weights(comparison: Comparison) -> pd.DataFrame:
    """Gives cosine, SQNR (dB) and largest difference of each weight, also in steps of its scale."""
    return _records(comparison.weights, ("name", "cosine", "sqnr_db", "atol", "atol_scales", "reference_absmax"))


def called(comparison: Comparison) -> pd.DataFrame:
    """Gives how often each module ran in one forward, for both models."""
    rows = [
        (number, model.stage, row.name, row.type_name, row.count, row.alias_of)
        for number, model in enumerate((comparison.reference, comparison.test))
        for row in model.called
    ]
    return _frame(("model", "stage", "name", "type", "called_times", "alias_of"), rows)


def unfused(comparison: Comparison) -> pd.DataFrame:
    """Gives the ops that could be one: a `group` number, name and type in order, and the cause."""
    rows = [
        (number, name, type_name, group.cause)
        for number, group in enumerate(comparison.unfused)
        for name, type_name in zip(group.names, group.types, strict=True)
    ]
    return _frame(("group", "name", "type", "cause"), rows)


def qconfig(comparison: Comparison) -> pd.DataFrame:
    """Gives each op call's input and output dtypes as they really are."""
    rows = [
        (row.name, row.type_name, input_dtypes_text(row.input_dtypes), row.out_dtype, row.ch_axis, row.observer)
        for row in comparison.qconfig.outputs
    ]
    return _frame(("name", "type", "input_dtype", "out_dtype", "ch_axis", "observer"), rows)


def weight_qconfig(comparison: Comparison) -> pd.DataFrame:
    """Gives each weight's dtype and channel axis (-1: per tensor)."""
    rows = [
        (row.name, row.type_name, row.weight_dtype, row.ch_axis, row.observer) for row in comparison.qconfig.weights
    ]
    return _frame(("name", "type", "weight_dtype", "ch_axis", "observer"), rows)


def qconfig_messages(comparison: Comparison) -> pd.DataFrame:
    """Gives the ops whose qconfig is worth a look, and why."""
    rows = [(row.name, row.type_name, row.message) for row in comparison.qconfig.messages]
    return _frame(("name", "type", "message"), rows)


def findings(data: ReportData) -> pd.DataFrame:
    """Gives the findings in order, evidence and patch as text."""
    columns = ["id", "severity", "op", "title", "origin", "cost", "advice", "evidence", "source", "patch"]
    columns += ["expected_gain_db", "measured_gain"]
    rows = []
    for finding in data.findings:
        evidence = "; ".join(f"{item.name} = {item.value} {item.unit}".rstrip() for item in finding.evidence)
        head = (finding.id, finding.severity, finding.op, finding.title, finding.origin, finding.cost, finding.advice)
        patch = finding.patch.code if finding.patch else ""
        rows.append((*head, evidence, finding.source, patch, finding.expected_gain_db, finding.measured_gain))
    return _frame(columns, rows)


def metrics(data: ReportData) -> pd.DataFrame:
    """Gives what `evaluate` returned for each stage."""
    return _records(data.stage_metrics, ("stage", "value"))


def effects(data: ReportData) -> pd.DataFrame:
    """Gives what each qconfig entry did: requested dtype, actual dtype, reason."""
    return _records(data.effects, ("op", "requested", "actual", "reason"))


COMPARISON_TABLES: dict[str, Callable[[Comparison], pd.DataFrame]] = {
    "similarity": similarity,
    "ordered_op_error": ordered_by_op_error,
    "layers": layers,
    "statistic0": lambda comparison: statistic(comparison.reference.tensors),
    "statistic1": lambda comparison: statistic(comparison.test.tensors),
    "weights": weights,
    "called": called,
    "unfused": unfused,
    "qconfig": qconfig,
    "weight_qconfig": weight_qconfig,
    "qconfig_messages": qconfig_messages,
}
REPORT_TABLES: dict[str, Callable[[ReportData], pd.DataFrame]] = {
    "findings": findings,
    "metrics": metrics,
    "effects": effects,
}


def frame(data: ReportData, name: str, mode: str | None = None) -> pd.DataFrame:
    """Gives one table of a report by name.

    Args:
        data: the report.
        name: a key of `REPORT_TABLES` or `COMPARISON_TABLES`.
        mode: which comparison, "FvsQ", "QvsQ" or "CvsQ"; None is the main one.

    Raises:
        ReportError: unknown name, or the report holds no such comparison.
    """
    if name in REPORT_TABLES:
        return _typed(REPORT_TABLES[name](data))
    if name not in COMPARISON_TABLES:
        legal = ", ".join(sorted([*REPORT_TABLES, *COMPARISON_TABLES]))
        raise ReportError(f"frame: got the name {name!r}; expected one of: {legal}")
    return _typed(COMPARISON_TABLES[name](comparison_of(data, mode)))


def comparison_of(data: ReportData, mode: str | None) -> Comparison:
    """Gives the comparison of that mode, or the main one; a ReportError lists what the report holds."""
    for comparison in data.comparisons:
        if mode is None or comparison.mode == mode:
            return comparison
    held = ", ".join(comparison.mode for comparison in data.comparisons) or "none"
    raise ReportError(f"frame: got mode {mode!r}; expected a comparison that this report holds: {held}")


def range_rank(tensor: TensorRecord) -> tuple[int, float]:
    """Gives the sort key of the quant range, max(abs(min), abs(max)) descending; a NaN comes first."""
    stats = tensor.stats
    has_nan = math.isnan(stats.minimum) or math.isnan(stats.maximum)
    return _descending(math.nan if has_nan else stats.absmax)


def single_scale(scale: Sequence[float]) -> float | None:
    """Gives the one scale of a tensor; None when it has none or one per channel."""
    return scale[0] if len(scale) == 1 else None


def qscale(layer: LayerRecord) -> float | None:
    """Gives the output scale of an op; None for a per-channel or unquantized output."""
    if layer.qparams is None or layer.qparams.is_per_channel:
        return None
    return single_scale(layer.qparams.scale)


def input_dtypes_text(dtypes: Sequence[str]) -> str:
    """Gives one dtype bare and several as a list, as users of the original know it."""
    return dtypes[0] if len(dtypes) == 1 else str(list(dtypes)) if dtypes else ""


def _similarity_row(layer: LayerRecord) -> tuple[Any, ...]:
    accumulated, injected = layer.accumulated, layer.injected
    head = (layer.index, layer.name, layer.type_name, layer.status, layer.reason)
    if accumulated is None:
        return (*head, None, qscale(layer), None, None, injected.atol_scales if injected else None)
    numbers = (accumulated.cosine, qscale(layer), accumulated.atol, accumulated.atol_scales)
    return (*head, *numbers, injected.atol_scales if injected else None)


def _layer_row(layer: LayerRecord) -> tuple[Any, ...]:
    head = (layer.index, layer.name, layer.op_name, layer.call, layer.type_name, layer.status, layer.reason, layer.kind)
    dtype = layer.qparams.dtype if layer.qparams else ""
    error = layer.quant_error
    own = (error.codes_per_std, error.clip_ratio, error.sqnr_db) if error else (None, None, None)
    pairs = (*_pair_values(layer.accumulated), *_pair_values(layer.injected))
    return (*head, layer.source, qscale(layer), dtype, *pairs, *own, layer.num_params, layer.is_output)


def _pair_values(pair: PairStats | None) -> tuple[float | None, ...]:
    return tuple(getattr(pair, field) if pair else None for field in _PAIR_FIELDS)


def _statistic_row(tensor: TensorRecord) -> tuple[Any, ...]:
    stats = tensor.stats
    head = (tensor.index, tensor.name, tensor.type_name, tensor.attr)
    numbers = (stats.minimum, stats.maximum, stats.mean, stats.var, single_scale(tensor.scale))
    return (*head, *numbers, tensor.dtype, "x".join(map(str, tensor.shape)), stats.num_nan, stats.num_inf)


def _non_finite_text(tensor: TensorRecord) -> str:
    stats = tensor.stats
    parts = [f"NaN ({stats.num_nan})"] if stats.num_nan else []
    return ", ".join([*parts, f"Inf ({stats.num_inf})"] if stats.num_inf else parts)


def _descending(value: float | None) -> tuple[int, float]:
    if value is None:
        return (2, 0.0)
    return (0, 0.0) if math.isnan(value) else (1, -value)


def _records(records: Iterable[Any], fields: Sequence[str]) -> pd.DataFrame:
    return _frame(fields, [tuple(getattr(record, field) for field in fields) for record in records])


def _frame(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Builds a table of plain objects: None stays None, integers stay integers."""
    table: pd.DataFrame = pd.DataFrame([list(row) for row in rows], columns=list(columns), dtype=object)
    return table


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Gives numeric columns their numeric type; None becomes NaN there."""
    typed: pd.DataFrame = table.infer_objects()
    return typed
