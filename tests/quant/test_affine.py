from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from profiler.errors import ConfigError
from profiler.quant.affine import (
    ABSMAX_FLOOR,
    dequantize,
    fake_quantize,
    qinfo,
    quantize,
    round_half_even,
    scale_from_absmax,
)

RANGES = {"qint4": (-8, 7), "qint8": (-128, 127), "qint16": (-32768, 32767)}


def codes_float64(x: Tensor, scale: float, dtype: str) -> np.ndarray:
    """The formula of the numeric model; the inverse and the product are float32 as stated, all else is exact."""
    inverse = np.float32(1) / np.float32(scale)
    product = (x.numpy() * inverse).astype(np.float64)
    return np.clip(np.rint(product), *RANGES[dtype])


def assert_quantized(x: Tensor, scale: float, dtype: str) -> None:
    s, info = torch.tensor(scale, dtype=torch.float32), qinfo(dtype)
    expected = codes_float64(x, scale, dtype)
    x_q = quantize(x, s, info)
    assert x_q.dtype == info.torch_dtype
    assert x_q.shape == x.shape
    np.testing.assert_array_equal(x_q.numpy().astype(np.float64), expected)
    x_fq = fake_quantize(x, s, info)
    assert x_fq.dtype == torch.float32
    np.testing.assert_array_equal(x_fq.numpy(), (expected * np.float64(np.float32(scale))).astype(np.float32))
    assert torch.equal(x_fq, dequantize(x_q, s))


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("exponent", range(-8, 9))
def test_quantize_scales_from_1e_minus_8_to_1e8_equal_formula(dtype: str, exponent: int) -> None:
    scale = 1.2345 * 10.0**exponent
    x = torch.randn(5000) * scale * RANGES[dtype][1] / 2
    assert_quantized(x, scale, dtype)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.25, 2.0**-20, 2.0**20])
@pytest.mark.parametrize("dtype", RANGES)
def test_quantize_ties_go_to_the_even_code(scale: float, dtype: str) -> None:
    low, high = (max(v, -2000) if v < 0 else min(v, 2000) for v in RANGES[dtype])
    halves = torch.arange(2 * low - 5, 2 * high + 6, dtype=torch.float32) * (scale / 2)
    assert_quantized(halves, scale, dtype)


def test_quantize_neighbours_of_ties_equal_formula() -> None:
    ties = (torch.arange(-130, 130) + 0.5) * 0.037
    neighbours = torch.cat([ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1)])
    assert_quantized(neighbours, 0.037, "qint8")


def test_quantize_reaches_both_ends_of_the_range() -> None:
    scale = scale_from_absmax(torch.tensor(1.0), -128, 127)
    # +-absmax is the tie 127.5 itself, which the float32 inverse may miss by one unit in the last place
    assert quantize(torch.tensor([-1.001, 1.001]), scale, qinfo("qint8")).tolist() == [-128, 127]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    scale=st.floats(1e-8, 1e8),
    dtype=st.sampled_from(sorted(RANGES)),
    seed=st.integers(0, 1000),
)
def test_quantize_any_shape_and_scale_equals_formula(shape: list[int], scale: float, dtype: str, seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale * 200
    assert_quantized(x, scale, dtype)


@settings(max_examples=40, deadline=None)
@given(axis=st.integers(0, 3), dtype=st.sampled_from(sorted(RANGES)), exponent=st.integers(-6, 6))
def test_quantize_per_channel_equals_each_channel_alone(axis: int, dtype: str, exponent: int) -> None:
    info = qinfo(dtype)
    x = torch.randn(3, 4, 5, 2) * 10.0**exponent * 50
    scales = (torch.rand(x.shape[axis]) + 0.1) * 10.0**exponent
    x_q, x_fq = quantize(x, scales, info, axis), fake_quantize(x, scales, info, axis)
    for c in range(x.shape[axis]):
        assert torch.equal(x_q.select(axis, c), quantize(x.select(axis, c).contiguous(), scales[c], info))
        assert torch.equal(x_fq.select(axis, c), fake_quantize(x.select(axis, c).contiguous(), scales[c], info))
    assert torch.equal(dequantize(x_q, scales, axis), x_fq)


@pytest.mark.parametrize(("absmax", "dtype", "scale"), [
    (1.0, "qint8", 1 / 127.5), (1.0, "qint16", 1 / 32767.5),
    (2.9943717, "qint8", 0.0234853), (0.9995295, "qint8", 0.0078394),
])  # fmt: skip
def test_scale_from_absmax_equals_the_printed_tables(absmax: float, dtype: str, scale: float) -> None:
    made = scale_from_absmax(torch.tensor(absmax), *RANGES[dtype])
    assert made.dtype == torch.float32
    assert float(made) == pytest.approx(scale, abs=0.5e-7)  # the tables print seven decimals


def test_scale_from_absmax_zero_gives_the_floor() -> None:
    made = scale_from_absmax(torch.tensor([0.0, 1e-12, 1.0]), -128, 127)
    assert made.tolist() == [2.0**-23, 2.0**-23, float(np.float32(1) / np.float32(127.5))]
    assert pytest.approx(1.52e-5, rel=1e-3) == ABSMAX_FLOOR


def test_round_half_even_ties() -> None:
    x = torch.tensor([2.5, 3.5, -2.5, 0.5, -0.5, 1.5])
    assert round_half_even(x).tolist() == [2, 4, -2, 0, 0, 2]


def test_fake_quantize_gradient_is_one_inside_and_zero_outside() -> None:
    x = torch.tensor([-128.6, -128.4, -128.0, -3.3, 0.0, 4.5, 127.0, 127.4, 127.6, 500.0], requires_grad=True)
    fake_quantize(x, torch.tensor(1.0), qinfo("qint8")).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_fake_quantize_per_channel_gradient_uses_each_channels_range() -> None:
    x = torch.full((3, 2), 100.0, requires_grad=True)
    fake_quantize(x, torch.tensor([0.1, 1.0, 10.0]), qinfo("qint8"), 0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0], [1, 1], [1, 1]]


def test_fake_quantize_twice_changes_nothing() -> None:
    scale = torch.tensor(0.0371)
    once = fake_quantize(torch.randn(10_000), scale, qinfo("qint8"))
    assert torch.equal(fake_quantize(once, scale, qinfo("qint8")), once)


@pytest.mark.parametrize("dtype", ["qint9", "", None, torch.qint8])
def test_qinfo_unknown_dtype_lists_the_known_ones(dtype: Any) -> None:
    with pytest.raises(ConfigError, match="use one of qint4, qint8, qint16, qint32"):
        qinfo(dtype)
