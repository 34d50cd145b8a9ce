"""max_pool2d on codes equals torch's max pool of the same numbers in float64, in both layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quant.op_forms import codes, quantized

PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.one_of(st.none(), PAIR),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=PAIR,
    dtype=st.sampled_from(["qint8", "qint16"]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_max_pool2d_of_codes_equals_float64(
    kernel: Any, stride: Any, padding: Any, dilation: Any, dtype: str, layout: torch.memory_format
) -> None:
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    x = codes((2, 3, 13, 12), dtype=dtype).contiguous(memory_format=layout)
    expected = F.max_pool2d(x.double(), kernel, stride, padding, dilation)
    y = F.max_pool2d(quantized(x, 0.1, dtype), kernel, stride, padding, dilation)
    assert y.plain.dtype == x.dtype
    assert torch.equal(y.plain.double(), expected)


def test_max_pool2d_of_a_large_image_channels_last_works() -> None:
    x = codes((2, 8, 200, 300)).contiguous(memory_format=torch.channels_last)
    y = F.max_pool2d(quantized(x, 0.1), kernel_size=3, stride=2, padding=1)
    assert torch.equal(y.plain.double(), F.max_pool2d(x.double(), 3, 2, 1))
    assert y.plain.is_contiguous(memory_format=torch.channels_last)


def test_max_pool2d_ceil_mode_and_refusals_are_torchs_own() -> None:
    x = codes((1, 2, 6, 6))
    y = F.max_pool2d(quantized(x, 0.1), 3, 2, ceil_mode=True)
    assert torch.equal(y.plain.double(), F.max_pool2d(x.double(), 3, 2, ceil_mode=True))
    with pytest.raises(RuntimeError, match="pad"):
        F.max_pool2d(quantized(x, 0.1), 2, 1, 2)
    with pytest.raises(RuntimeError, match="too small"):
        F.max_pool2d(quantized(x, 0.1), 9)
