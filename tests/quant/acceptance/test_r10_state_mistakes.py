"""R10: each of the workflow's four state mistakes yields its own finding and no other of the four."""

from __future__ import annotations

import pytest

from tests.analysis.findings.test_state import BATCHES, MISTAKES
from tests.analysis.toys import findings_of


@pytest.mark.parametrize("rule", ["ST1", "ST2", "ST3", "ST4"])
def test_r10_state_mistake_is_found_and_no_other(rule: str) -> None:
    found = [f.id for f in findings_of(MISTAKES[rule](), BATCHES) if f.id in ("ST1", "ST2", "ST3", "ST4")]
    assert found == [rule]
