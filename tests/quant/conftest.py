"""Every test of the core starts with the same march, policy and seed, and leaves no torch function mode behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from profiler.quant import set_march
from profiler.quant.policy import state_policy


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    set_march("bayes")
    torch.manual_seed(0)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the nets are so small that threads only wait for each other
    with state_policy("error"):
        yield
    torch.set_num_threads(num_threads)
    assert _get_current_function_mode_stack() == [], "a torch function mode was left active"
