"""Every numbered requirement that the core answers for has a test that names its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROWS = [*range(1, 37), 54, 63, 66, 93, 94, *range(97, 101), 102]
TESTS = "\n".join(path.read_text("utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))


@pytest.mark.parametrize("row", ROWS)
def test_acceptance_row_has_a_test_that_names_it(row: int) -> None:
    assert re.search(rf"def test_\w*?r0*{row}_", TESTS), f"no test is named test_r{row}_..."
