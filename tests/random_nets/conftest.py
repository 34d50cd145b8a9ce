"""Random networks run on a march that has every operator, on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from profiler.quant.march import March, march_set_to


@pytest.fixture(autouse=True)
def march() -> Iterator[None]:
    """For every test; torch's fused attention is off, as in models that are followed: it rounds otherwise."""
    threads, is_fused = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    with march_set_to(March.NASH_M):
        yield
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(is_fused)
