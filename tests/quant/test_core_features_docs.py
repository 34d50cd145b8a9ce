"""The examples of docs/core_features.md run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler.quant import ConsistencyStrategy, GlobalFakeQuantSwitch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "core_features.md"


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    yield
    ConsistencyStrategy.set_consistency_level(0)
    GlobalFakeQuantSwitch.enable()


def test_examples_of_the_page_run() -> None:
    names: dict[str, Any] = {"__name__": "core_features_docs"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 8
    assert ConsistencyStrategy.get_consistency_level() == 0
    assert GlobalFakeQuantSwitch.is_on
