"""Writes tables as text: grids, left aligned, floats with 7 decimals, the columns that users of the original know."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from profiler.records import COST_TEXT, Comparison, Finding, ModelRecord, QConfigRow, ReportData
from profiler.report import tables
from profiler.report.numbers import decimals, significant

_SIMILARITY_HEADERS = {
    "index": "Index",
    "name": "Module Name",
    "type": "Module Type",
    "similarity": "Similarity",
    "qscale": "qscale",
    "atol": "Acc Error\n(float atol)",
    "atol_scales": "Acc Error\n(N out_qscale)",
    "op_error_scales": "Op Error with Same\nInput (N out_qscale)",
}
_TENSOR_HEADERS = {"index": "Module Index", "name": "Module Name", "type": "Module Type", "attr": "Input/Output/Attr"}
_STATISTIC_HEADERS = _TENSOR_HEADERS | {
    "min": "Min",
    "max": "Max",
    "mean": "Mean",
    "var": "Var",
    "scale": "Scale",
    "dtype": "Dtype",
}
_QCONFIG_HEADERS = {
    "name": "Module Name",
    "type": "Module Type",
    "input_dtype": "Input dtype",
    "out_dtype": "out dtype",
    "ch_axis": "ch_axis",
    "observer": "observer",
}
_WEIGHT_QCONFIG_HEADERS = {
    "name": "Module Name",
    "type": "Module Type",
    "weight_dtype": "weight dtype",
    "ch_axis": "ch_axis",
    "observer": "observer",
}
_SUFFIX_NOTE = """\
Note:
  name(i)    i >= 1: call i + 1 of a shared module; the first call has no suffix
  (I)        an Identity in one of the two models, for example a fused BatchNorm or ReLU
  (I vs I)   an Identity in both models
  [add]      the method of a FloatFunctional that was called
Similarity is the cosine, cut (not rounded) after 7 decimals. qscale is empty for per-channel and unquantized outputs.
Acc Error holds what came from earlier ops too. Op Error with Same Input is the error of this op alone; within a few
scales is healthy. A row without numbers says why.
"""


def similarity_text(comparison: Comparison) -> str:
    """Gives similarity.txt: one row per op call in forward order, and what the suffixes mean."""
    return _similarity_grid(tables.similarity(comparison)) + "\n\n" + _SUFFIX_NOTE


def ordered_similarity_text(comparison: Comparison) -> str:
    """Gives ordered_op_error_similarity.txt: the same rows by the last column, descending."""
    return _similarity_grid(tables.ordered_by_op_error(comparison)) + "\n\n" + _SUFFIX_NOTE


def statistic_text(model: ModelRecord) -> str:
    """Gives modelN_statistic.txt: NaN/Inf rows if there are any, forward order, then by quant range."""
    broken = tables.non_finite(model.tensors)
    parts = [grid(broken, _TENSOR_HEADERS | {"nan_or_inf": "NaN or Inf"})] if len(broken) else []
    parts.append(grid(tables.statistic(model.tensors), _STATISTIC_HEADERS))
    by_range = grid(tables.statistic_by_range(model.tensors), _STATISTIC_HEADERS)
    parts.append("Statistics with quant range in descending order...\n" + by_range)
    return "\n\n".join(parts) + "\n"


def weights_text(comparison: Comparison) -> str:
    """Gives weight_comparison.txt: cosine and largest difference of each weight."""
    headers = {"name": "Weight Name", "cosine": "Similarity", "atol": "Atol"}
    return grid(tables.weights(comparison), headers, cell={"cosine": _cosine}) + "\n"


def called_text(comparison: Comparison) -> str:
    """Gives module_called_count.txt: one table per model; 0 is unused, more than 1 is shared."""
    table = tables.called(comparison)
    parts = []
    for number, model in enumerate((comparison.reference, comparison.test)):
        rows = table.loc[table["model"] == number]
        heading = f"model{number} ({one_line(model.title)}): how often each module ran in one forward"
        parts.append(heading + "\n" + grid(rows, {"name": "name", "called_times": "called times"}))
        parts += [f"{one_line(row.name)} is the same object as {row.alias_of}" for row in model.called if row.alias_of]
    return "\n\n".join(parts) + "\n"


def unfused_text(comparison: Comparison) -> str:
    """Gives unfused_operations.txt: one table per group of ops that could be one, and the cause."""
    if not comparison.unfused:
        return "No unfused operations were found.\n"
    table = tables.unfused(comparison)
    parts = []
    for number, group in enumerate(comparison.unfused):
        rows = table.loc[table["group"] == number]
        parts.append(grid(rows, {"name": "name", "type": "type"}) + f"\ncause: {one_line(group.cause)}")
    return "\n\n".join(parts) + "\n"


def qconfig_text(comparison: Comparison) -> str:
    """Gives qconfig_info.txt: the dtype counts and the three tables."""
    messages = {"name": "Module Name", "type": "Module Type", "message": "Msg"}
    parts = (
        out_dtype_line(comparison.qconfig.outputs),
        "Each layer out qconfig:\n" + grid(tables.qconfig(comparison), _QCONFIG_HEADERS),
        "Weight qconfig:\n" + grid(tables.weight_qconfig(comparison), _WEIGHT_QCONFIG_HEADERS),
        "Please check if these OPs qconfigs are expected..\n" + grid(tables.qconfig_messages(comparison), messages),
    )
    return "\n\n".join(parts) + "\n"


def out_dtype_line(rows: Sequence[QConfigRow]) -> str:
    """Gives how many op calls have which output dtype, the most frequent first."""
    counts = Counter(row.out_dtype or "none" for row in rows)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "Out dtype statistics: " + (", ".join(f"{dtype}: {count}" for dtype, count in ordered) or "no quantized op")


def findings_text(data: ReportData) -> str:
    """Gives findings.txt: the verdict and each finding with evidence, advice, cost and patch."""
    parts = [one_line(data.verdict), *(f"note: {one_line(note)}" for note in data.notes)]
    parts += [_finding_text(number, finding) for number, finding in enumerate(data.findings, start=1)]
    return "\n\n".join(parts if data.findings else [*parts, "No findings."]) + "\n"


def environment_text(data: ReportData) -> str:
    """Gives environment.txt: versions, arguments and fingerprints."""
    groups = {"versions": data.versions, "arguments": data.arguments, "fingerprints": data.fingerprints}
    parts = [f"{data.title}\ncreated: {data.created}"]
    for title, values in groups.items():
        parts.append("\n".join([f"{title}:", *(f"  {key}: {value}" for key, value in sorted(values.items()))]))
    return "\n\n".join(parts) + "\n"


def journal_text(data: ReportData) -> str:
    """Gives journal.txt: what was done to the model, in order."""
    return "".join(f"{line}\n" for line in data.journal) or "The journal is empty.\n"


def grid(table: pd.DataFrame, headers: dict[str, str], cell: dict[str, Callable[[Any], str]] | None = None) -> str:
    """Gives a table as a grid.

    Args:
        table: the rows.
        headers: column of the table -> heading, in the order to print.
        cell: how to print a column whose floats are not simply given with 7 decimals.
    """
    printers = [(cell or {}).get(column, cell_text) for column in headers]
    picked = table[list(headers)].itertuples(index=False, name=None)
    rows = [[printer(value) for printer, value in zip(printers, row, strict=True)] for row in picked]
    return tabulate(rows, list(headers.values()), tablefmt="grid", disable_numparse=True, stralign="left")


def cell_text(value: Any) -> str:
    """Gives a cell: empty for None, floats with 7 decimals, text on one line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return decimals(value, 7) if not math.isfinite(value) or abs(value) < 1e15 else f"{value:.7e}"
    return one_line(str(value))


def one_line(text: str) -> str:
    """Gives the text with control characters escaped, so that a name cannot break a table."""
    return re.sub(r"[\x00-\x1f\x7f\u2028\u2029]", lambda match: repr(match.group())[1:-1], text)


def _similarity_grid(table: pd.DataFrame) -> str:
    def similarity(row: Any) -> str:
        return f"{row.status}: {row.reason}".removesuffix(": ") if row.similarity is None else _cosine(row.similarity)

    printed = table.assign(similarity=[similarity(row) for row in table.itertuples()])
    return grid(printed, _SIMILARITY_HEADERS)


def _cosine(value: Any) -> str:
    return decimals(value, 7, "up")


def _finding_text(number: int, finding: Finding) -> str:
    origin = ", propagated" if finding.origin == "propagated" else ""
    lines = [f"{number}. [{finding.severity}] {finding.id} {one_line(finding.op)}: {one_line(finding.title)}{origin}"]
    for item in finding.evidence:
        value = significant(item.value) if isinstance(item.value, float) else one_line(str(item.value))
        limit = f" (limit {item.limit})" if item.limit else ""
        lines.append(f"   {item.name}: {value} {item.unit}".rstrip() + limit)
    lines += [f"   advice: {one_line(finding.advice)}", f"   cost: {COST_TEXT[finding.cost]}"]
    lines += [f"   source: {finding.source}"] if finding.source else []
    lines += [f"   same cause: {one_line(line)}" for line in finding.related]
    lines += [f"   expected gain: {significant(finding.expected_gain_db)} dB"] if finding.expected_gain_db else []
    lines += [f"   measured gain: {finding.measured_gain}"] if finding.measured_gain else []
    if finding.patch:
        lines += ["   patch:", *(f"     {line}" for line in finding.patch.code.splitlines())]
    return "\n".join(lines)
