from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.quant.ops.scale_keeping_cases import Call, assert_front_ends_run, assert_moves_codes


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    stride=st.integers(1, 3),
)
def test_unfold_patches_are_columns_of_codes(kernel: Any, dilation: int, padding: int, stride: int) -> None:
    assert_moves_codes(lambda x: F.unfold(x, kernel, dilation, padding, stride), (2, 3, 7, 6))


@pytest.mark.parametrize(("shape", "module"), [((3, 5, 6), nn.Unfold(2)), ((2, 3, 7, 6), nn.Unfold(3, padding=(1, 2)))])
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_unfold_module_moves_codes(shape: Any, module: nn.Module, dtype: str) -> None:
    assert_moves_codes(module, shape, dtype)


@pytest.mark.parametrize(("dimension", "size", "step"), [(0, 2, 1), (2, 3, 2), (-1, 6, 1), (1, 1, 2)])
def test_unfold_method_gives_slices_of_codes(dimension: int, size: int, step: int) -> None:
    assert_moves_codes(lambda x: x.unfold(dimension, size, step), (4, 3, 7, 6))


def test_unfold_runs_in_both_front_ends() -> None:
    assert_front_ends_run(Call(lambda x: x.unfold(2, 3, 2)), (2, 3, 7, 7))
    assert_front_ends_run(nn.Unfold(3, padding=1), (2, 3, 7, 7))
