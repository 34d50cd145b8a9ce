"""The other tables of the page: statistics, weights, called counts, unfused groups and qconfig."""

from __future__ import annotations

import math

from profiler.records import CalledCount, Comparison, ReportData, TensorRecord
from profiler.report.cells import (
    HEALTHY,
    MODEL_ORDER,
    SHOWN,
    Cell,
    Column,
    Order,
    PageTable,
    Texts,
    exceeds,
    plain_table,
    ranked,
)
from profiler.report.limits import Limits
from profiler.report.tables import input_dtypes_text, range_rank, single_scale

_NAME = Column("Op", "Name of the op; (i) is call i + 1 of a shared module.", is_op=True)
_TYPE = Column("Type", "Type of the op in this model.")
_STATISTIC = (
    Column("#", "Position in forward order.", is_number=True),
    _NAME,
    _TYPE,
    Column("Tensor", "Input, output or attribute of the op."),
    *(
        Column(name, f"{text}, over all batches, in real values.", is_number=True)
        for name, text in (("Min", "Smallest value"), ("Max", "Largest value"), ("Mean", "Mean"), ("Var", "Variance"))
    ),
    Column("Scale", "One step of the integer codes.", is_number=True),
    Column("Dtype", "Type of the tensor's values."),
)


def _weight_columns(limits: Limits) -> tuple[Column, ...]:
    return (
        Column("Weight", "Name of the parameter."),
        Column("SQNR", "Signal to quantization noise of the weight.", "dB", "up", limits.sqnr_db, True),
        Column("Similarity", "Cosine of the weight in both stages.", "", "up", None, True),
        Column("Atol", "Largest difference.", "real value", "down", None, True),
        Column("Atol", "Largest difference in weight scales; 0.5 is ideal rounding.", "scales", "down", None, True),
        Column("Absmax", "Largest absolute value of the reference weight.", is_number=True),
    )


def statistic_table(tensors: tuple[TensorRecord, ...], rows_of_ops: dict[str, int], texts: Texts) -> PageTable:
    """Gives one row per tensor; orders: by quant range, max(abs(min), abs(max)) descending, and as the model runs."""
    table = PageTable(_STATISTIC)
    for tensor in tensors:
        table.rows.append(_statistic_cells(tensor, texts))
        table.folds.append(SHOWN)
        table.ops.append(rows_of_ops.get(tensor.name, -1))
        if tensor.stats.num_nan or tensor.stats.num_inf:
            table.flags.append((len(table.rows) - 1, 3))
    by_range = ranked(len(tensors), lambda row: range_rank(tensors[row]))
    table.orders = (Order("range", "by range", by_range), MODEL_ORDER)
    return table


def weights_table(comparison: Comparison, limits: Limits, texts: Texts) -> PageTable:
    """Gives one row per weight, worst SQNR first."""
    columns = _weight_columns(limits)
    table = PageTable(columns)
    for row, weight in enumerate(comparison.weights):
        values = (weight.sqnr_db, weight.cosine, weight.atol, weight.atol_scales, weight.reference_absmax)
        numbers = [
            texts.number(value, column, "the weight is not quantized")
            for value, column in zip(values, columns[1:], strict=True)
        ]
        is_bad = exceeds(weight.sqnr_db, columns[1])
        table.rows.append([texts.shared(weight.name), *numbers])
        table.folds.append(SHOWN if is_bad else HEALTHY)
        table.ops.append(-1)
        table.flags += [(row, 1)] if is_bad else []
    worst = ranked(len(table.rows), lambda row: _nan_first(comparison.weights[row].sqnr_db))
    table.orders = (Order("worst", "worst first", worst), MODEL_ORDER)
    return table


def called_table(comparison: Comparison, rows_of_ops: dict[str, int], texts: Texts) -> PageTable:
    """Gives how often each module ran in one forward of both models; modules that ran once in both are folded."""
    stages = (comparison.reference.stage, comparison.test.stage)
    counts = [Column(f"Calls in {stage}", "0: unused; above 1: shared.", is_number=True) for stage in stages]
    table = PageTable((Column("Module", "Name of the module.", is_op=True), Column("Type", "Its type."), *counts))
    models = [{row.name: row for row in model.called} for model in (comparison.reference, comparison.test)]
    for name in dict.fromkeys([*models[0], *models[1]]):
        both = (models[0].get(name), models[1].get(name))
        known = [item for item in both if item is not None]
        cells: list[Cell] = [_count_cell(item, stage, texts) for item, stage in zip(both, stages, strict=True)]
        table.rows.append([texts.shared(name), texts.shared(known[-1].type_name), *cells])
        table.folds.append(HEALTHY if all(item.count == 1 and not item.alias_of for item in known) else SHOWN)
        table.ops.append(rows_of_ops.get(name, -1))
    worst = ranked(len(table.rows), lambda row: table.folds[row] == HEALTHY)
    table.orders = (Order("worst", "unused and shared first", worst), MODEL_ORDER)
    return table


def unfused_table(comparison: Comparison, texts: Texts) -> PageTable:
    """Gives one row per group of ops that could be one."""
    columns = (
        Column("Ops", "The ops that could be one, in order."),
        Column("Types", "Their types."),
        Column("Cause", "Why they were not fused."),
    )
    rows = [(" → ".join(group.names), " → ".join(group.types), group.cause) for group in comparison.unfused]
    return plain_table(columns, rows, texts)


def qconfig_tables(comparison: Comparison, rows_of_ops: dict[str, int], texts: Texts) -> dict[str, PageTable]:
    """Gives the three tables of qconfig_info.txt: op outputs, weights, and what to check."""
    check = comparison.qconfig
    axis = Column("ch_axis", "Channel axis of the scales; -1: one scale per tensor.", is_number=True)
    observer = Column("Observer", "What chose the range.")
    output_columns = (
        _NAME,
        _TYPE,
        Column("Input dtype", "One entry per input tensor."),
        Column("Out dtype", "As it really is."),
        axis,
        observer,
    )
    outputs = [
        (row.name, row.type_name, input_dtypes_text(row.input_dtypes), row.out_dtype, row.ch_axis, row.observer)
        for row in check.outputs
    ]
    weight_columns = (_NAME, _TYPE, Column("Weight dtype", "As it really is."), axis, observer)
    weights = [(row.name, row.type_name, row.weight_dtype, str(row.ch_axis), row.observer) for row in check.weights]
    messages = [(row.name, row.type_name, row.message) for row in check.messages]
    tables = {
        "messages": plain_table((_NAME, _TYPE, Column("Message", "Why to look at it.")), messages, texts),
        "outputs": plain_table(output_columns, outputs, texts),
        "weights": plain_table(weight_columns, weights, texts),
    }
    for key, names in (("messages", messages), ("outputs", outputs), ("weights", weights)):
        tables[key].ops = [rows_of_ops.get(row[0], -1) for row in names]
    return tables


def effects_table(data: ReportData, texts: Texts) -> PageTable:
    """Gives what each qconfig entry asked for and what the op really got."""
    columns = (
        Column("Op", "Name of the op."),
        Column("Requested", "The dtype that was asked for."),
        Column("Actual", "The dtype that the op has."),
        Column("Reason", "Why they differ."),
    )
    return plain_table(columns, [(row.op, row.requested, row.actual, row.reason) for row in data.effects], texts)


def _statistic_cells(tensor: TensorRecord, texts: Texts) -> list[Cell]:
    stats = tensor.stats
    numbers = [
        texts.number(value, column, "")
        for value, column in zip((stats.minimum, stats.maximum, stats.mean, stats.var), _STATISTIC[4:8], strict=True)
    ]
    no_scale = "one scale per channel" if tensor.scale else "not quantized"
    scale = texts.number(single_scale(tensor.scale), _STATISTIC[8], no_scale)
    head: list[Cell] = [str(tensor.index), *map(texts.shared, (tensor.name, tensor.type_name, _attr_text(tensor)))]
    return [*head, *numbers, scale, texts.shared(tensor.dtype)]


def _attr_text(tensor: TensorRecord) -> str:
    stats = tensor.stats
    broken = [f"{count} {name}" for count, name in ((stats.num_nan, "NaN"), (stats.num_inf, "Inf")) if count]
    return ": ".join([tensor.attr, ", ".join(broken)]) if broken else tensor.attr


def _count_cell(row: CalledCount | None, stage: str, texts: Texts) -> Cell:
    if row is None:
        return texts.missing(f"no such module in the {stage} model")
    return texts.shared(f"{row.count} (same object as {row.alias_of})") if row.alias_of else str(row.count)


def _nan_first(value: float) -> float:
    return -math.inf if math.isnan(value) else value
