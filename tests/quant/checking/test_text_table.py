"""Grids of text: columns, names that would break them."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.quant.text_table import cell_text, grid


def test_grid_aligns_left_with_one_line_per_row() -> None:
    assert grid(("name", "n"), [("conv", 1), ("a", 22)]) == (
        "+------+----+\n| name | n  |\n+======+====+\n| conv | 1  |\n+------+----+\n| a    | 22 |\n+------+----+"
    )


def test_grid_without_rows_is_its_heading() -> None:
    assert grid(("a",), []) == "+---+\n| a |\n+===+"


def test_grid_counts_wide_characters_as_two_columns() -> None:
    lines = grid(("name", "x"), [("卷积", "y"), ("conv", "y")]).splitlines()
    assert lines[3] == "| 卷积 | y |"


@pytest.mark.parametrize("text", ["a|b", "a\nb", "a\r\nb", "\x1b[31m", "a\u2028b", "back\\slash", "\ud800"])
def test_cell_text_of_a_hostile_name_is_one_cell_and_reads_back(text: str) -> None:
    cell = cell_text(text)
    assert len(cell.splitlines()) == 1
    assert "|" not in cell
    assert ast.literal_eval(f"'{cell}'") == text


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=4))
def test_grid_of_any_text_has_one_line_and_all_cells_per_row(rows: list[tuple[str, str]]) -> None:
    lines = [line for line in grid(("a", "b"), rows).splitlines() if line.startswith("|")]
    assert len(lines) == len(rows) + 1
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]
    assert found == [[cell_text(cell).strip() for cell in row] for row in rows]
