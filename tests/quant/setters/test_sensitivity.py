"""SensitivityTemplate: tables in every form, top-k and ratio, what is raised and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from profiler.errors import ConfigError
from profiler.quant import ModuleNameTemplate, SensitivityTemplate, set_march
from profiler.quant.setters.sensitivity import SensitiveRow, read_sensitive_table
from tests.quant.setters.nets import Chain, FusedAdd, differences, effect_of, logged, make, prepare, setter

COLUMNS = ["op_name", "sensitive_type", "op_type", "L1", "quant_dtype", "flops"]
TABLE = [
    ["body.3", "activation", "Conv2d", 0.9, "qint8", "864(40%)"],
    ["body.0", "weight", "Conv2d", 0.5, "qint8", "900(41%)"],
    ["body.4", "activation", "Sigmoid", 0.4, "qint8", "0(0%)"],
    ["last", "weight", "Conv2d", 0.3, "qint8", "12(1%)"],
    ["body.5", "activation", "Conv2d", 0.1, "qint8", "36(2%)"],
]
RECORDS = [dict(zip(COLUMNS, row, strict=True)) for row in TABLE]


@pytest.mark.parametrize(
    "table", [TABLE, RECORDS, [COLUMNS, *TABLE], tuple(map(tuple, TABLE)), pd.DataFrame(TABLE, columns=COLUMNS)]
)
def test_table_in_any_form_is_read_in_its_order(table: Any) -> None:
    assert read_sensitive_table(table) == [SensitiveRow(row[0], row[1]) for row in TABLE]


@pytest.mark.parametrize("saved", [TABLE, RECORDS, [COLUMNS, *TABLE]])
def test_table_is_read_from_its_file(saved: Any, tmp_path: Path) -> None:
    path = tmp_path / "output_0_L1_sensitive_ops.pt"
    torch.save(saved, path)
    assert read_sensitive_table(path) == read_sensitive_table(str(path)) == read_sensitive_table(TABLE)


@pytest.mark.parametrize(
    ("topk_or_ratio", "sensitive_type", "expected"),
    [
        (1, "both", {"body.3 output"}),
        (2, "both", {"body.3 output", "body.0 weight"}),
        (0.4, "both", {"body.3 output", "body.0 weight"}),
        (0.41, "both", {"body.3 output", "body.0 weight", "body.4 output"}),
        (2, "activation", {"body.3 output", "body.4 output"}),
        (0.34, "activation", {"body.3 output", "body.4 output"}),
        (1, "weight", {"body.0 weight"}),
        (1.0, "weight", {"body.0 weight", "last weight"}),
        (99, "both", {"body.3 output", "body.0 weight", "body.4 output", "last weight", "body.5 output"}),
        (0, "both", set()),
        (0.0, "both", set()),
    ],
)
def test_first_rows_of_the_chosen_type_are_raised_alone(
    topk_or_ratio: float, sensitive_type: Any, expected: set[str]
) -> None:
    set_march("nash-m")
    used = setter(SensitivityTemplate(TABLE, topk_or_ratio, sensitive_type), high_precision_output=False)
    after = prepare(make(Chain), used)
    found = differences(prepare(make(Chain), setter(high_precision_output=False)), after)
    assert {f"{op} {port}" for op, port in found} == expected
    assert found == logged(used)
    assert all("in the table" in change.reason for change in used.changes)


def test_two_tables_raise_what_either_lists() -> None:
    second = SensitivityTemplate([["body.0", "activation"]], 1)
    used = setter(SensitivityTemplate(TABLE, 1), second, high_precision_output=False)
    prepare(make(Chain), used)
    assert logged(used) == {("body.3", "output"): "qint16", ("body.0", "output"): "qint16"}
    assert [change.template for change in used.changes] == ["SensitivityTemplate 1", "SensitivityTemplate 2"]


def test_names_of_calls_methods_and_fused_parts_mean_their_op() -> None:
    table = [["add_0(1)", "activation"], ["b", "activation"], ["a[add]", "activation"]]
    used = setter(SensitivityTemplate(table, 3), enable_optimize=False)
    prepare(make(FusedAdd), used)
    assert logged(used) == {(o, "output"): "qint16" for o in ("add_0", "a")} | {("head", "output"): "torch.float32"}


def test_row_that_names_no_op_is_told_with_the_nearest_names() -> None:
    prepared = prepare(make(Chain), setter(SensitivityTemplate([["bodi.3", "activation"]], 1)))
    assert "body.3" in effect_of(prepared, "bodi.3", "no effect").reason
    assert "no row names an op" in effect_of(prepared, "SensitivityTemplate 1", "no effect").reason


def test_only_the_low_dtype_is_raised_and_frozen_ports_are_not() -> None:
    frozen = ModuleNameTemplate({"body.3": "qint8"}, freeze=True)
    low = ModuleNameTemplate({"body.4": "qint4"})
    raised = SensitivityTemplate(TABLE, 3, "activation")
    used = setter(frozen, low, raised, high_precision_output=False, enable_optimize=False)
    prepared = prepare(make(Chain), used)
    assert logged(used) == {("body.4", "output"): "qint4", ("body.5", "output"): "qint16"}
    assert [(r.op, r.reason) for r in used.refusals if r.template == "SensitivityTemplate 3"] == [
        ("body.3", "frozen by ModuleNameTemplate 1"),
        ("body.4", "it is qint4, only qint8 is raised"),
    ]
    assert "to 1 of 3 rows" in effect_of(prepared, "SensitivityTemplate 3", "applied").reason


@pytest.mark.parametrize(
    ("table", "count", "message"),
    [
        (TABLE, -1, "topk_or_ratio is -1"),
        (TABLE, 1.5, "topk_or_ratio is 1.5"),
        (TABLE, True, "topk_or_ratio is True"),
        (TABLE, "2", "topk_or_ratio is '2'"),
        ([["conv"]], 1, "row 0"),
        ([["conv", "output"]], 1, "row 0"),
        ([{"op": "conv"}], 1, "row 0"),
        ({"op_name": ["conv"]}, 1, "expected a path, or a list of rows"),
        (None, 1, "expected a path, or a list of rows"),
        ("no/such/file.pt", 1, "there is no file"),
    ],
)
def test_wrong_table_or_count_is_refused(table: Any, count: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SensitivityTemplate(table, count)


def test_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.pt"
    path.write_text("no table")
    with pytest.raises(ConfigError, match="cannot be read"):
        SensitivityTemplate(path, 1)
