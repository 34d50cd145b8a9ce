from __future__ import annotations

from pathlib import Path

import pytest

from profiler.quant.ops.coverage import coverage_page
from profiler.quant.ops.registry import OpSpec, all_specs

_PAGE = Path(__file__).parents[3] / "docs" / "operators.md"


def test_operators_page_is_what_the_table_says() -> None:
    assert _PAGE.read_text("utf-8") == coverage_page(), "the operator table changed: run `make docs`"


@pytest.mark.parametrize("spec", all_specs(), ids=lambda spec: spec.name)
def test_operators_page_names_every_operator_with_its_functions(spec: OpSpec) -> None:
    line = next(text for text in coverage_page().splitlines() if text.startswith(f"| `{spec.name}` |"))
    assert all(f"`{name}`" in line for name in spec.functions)
    assert line.count(" | ") == 3
