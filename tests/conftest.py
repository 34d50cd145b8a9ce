"""Options for all tests, and the order in which they run."""

from __future__ import annotations

import pytest

FIRST = "test_tiny.py"  # model to page in seconds: the quickest word on whether anything works


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != FIRST)
