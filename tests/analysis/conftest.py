"""One thread, and the march that the toys are made for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from profiler.quant import March, set_march


@pytest.fixture(autouse=True)
def march() -> None:
    set_march(March.BAYES)


@pytest.fixture(autouse=True, scope="package")
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
