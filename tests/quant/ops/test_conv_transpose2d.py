from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.quant.op_forms import assert_codes_equal, codes, forms_of, on_grid, quantized
from tests.quant.ops.spatial_gemm_cases import (
    X_SCALE,
    accumulator,
    assert_fake_quant_equals_formula_and_integer,
    assert_front_ends_convert,
    expected_codes,
    scale_that_fits,
)

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 3, "padding": 1, "output_padding": 2},
    "dilated": {"dilation": 2, "stride": 2},
    "grouped": {"groups": 2, "stride": 2},
    "depthwise": {"groups": 4},
    "no_bias": {"bias": False},
}


def conv_transpose2d(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return nn.ConvTranspose2d(4, 8, (3, 2), **kwargs)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_conv_transpose2d_integer_form_equals_integer_arithmetic(geometry: str, dtype: str) -> None:
    module, x_q = conv_transpose2d(**GEOMETRIES[geometry]), codes((2, 4, 5, 6), dtype=dtype)
    out_scale = scale_that_fits(module, x_q, dtype)
    _, integer = forms_of(module, out_scale, dtype)
    assert_codes_equal(integer(quantized(x_q, X_SCALE, dtype)), expected_codes(module, x_q, out_scale, dtype), dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv_transpose2d_fake_quant_form_equals_formula_and_integer_form(geometry: str) -> None:
    assert_fake_quant_equals_formula_and_integer(conv_transpose2d(**GEOMETRIES[geometry]), codes((3, 4, 15, 16)))


def test_conv_transpose2d_integer_high_precision_output_is_accumulator_times_scale() -> None:
    module, x_q = conv_transpose2d(), codes((2, 4, 5, 6))
    _, integer = forms_of(module, None)
    acc, acc_scale = accumulator(module, x_q)
    np.testing.assert_array_equal(integer(quantized(x_q, X_SCALE)).numpy(), acc.astype(np.float32) * acc_scale)


def test_conv_transpose2d_integer_empty_batch_gives_empty_codes() -> None:
    module, x_q = conv_transpose2d(), codes((2, 4, 5, 6))[:0]
    _, integer = forms_of(module, 0.1)
    assert_codes_equal(integer(quantized(x_q, X_SCALE)), expected_codes(module, x_q, 0.1, "qint8"))


def test_conv_transpose2d_all_zero_channel_and_tiny_weights_stay_finite() -> None:
    module, x_q = conv_transpose2d(), codes((2, 4, 5, 6))
    with torch.no_grad():
        module.weight.zero_()
    fake, integer = forms_of(module, 0.01)
    assert torch.equal(fake(on_grid(x_q, X_SCALE)).int_repr(), integer(quantized(x_q, X_SCALE)).plain)


def test_conv_transpose2d_front_ends_convert_and_train() -> None:
    assert_front_ends_convert(conv_transpose2d, (2, 4, 5, 6))


@settings(max_examples=15, deadline=None)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    groups=st.sampled_from([1, 2, 4]),
    out=st.sampled_from([4, 8]),
)
def test_conv_transpose2d_any_geometry_equals_integer_arithmetic(
    kernel: int, stride: int, padding: int, groups: int, out: int
) -> None:
    module = nn.ConvTranspose2d(4, out, kernel, stride, padding, stride - 1, groups)
    x_q = codes((2, 4, 5, 6))
    out_scale = scale_that_fits(module, x_q)
    _, integer = forms_of(module, out_scale)
    assert_codes_equal(integer(quantized(x_q, X_SCALE)), expected_codes(module, x_q, out_scale, "qint8"))


def test_conv_transpose2d_output_size_of_one_call_is_used_by_every_form() -> None:
    module, x_q = conv_transpose2d(stride=3), codes((2, 4, 5, 6))
    fake, integer = forms_of(module, 0.05)
    size = [n + 1 for n in module(x_q.float()).shape[2:]]
    padding = [1] * 2
    expected = expected_codes(module, x_q, 0.05, "qint8", padding)
    assert_codes_equal(integer(quantized(x_q, X_SCALE), output_size=size), expected)
    assert_codes_equal(integer(quantized(x_q, X_SCALE), size), expected)
    assert tuple(fake(on_grid(x_q, X_SCALE), size).shape) == expected.shape
    assert tuple(integer(quantized(x_q, X_SCALE)).shape)[2:] == tuple(n - 1 for n in size)


@pytest.mark.parametrize(("groups", "shape", "axis"), [(1, (8,), 1), (2, (1,), -1)])
def test_r6_conv_transpose2d_weight_scale_lies_along_axis_1_or_is_one(groups: int, shape: Any, axis: int) -> None:
    module = conv_transpose2d(groups=groups)
    with torch.no_grad():
        module.weight[:, 0] *= 100
    fake, _ = forms_of(module, 0.05)
    fake(on_grid(codes((2, 4, 5, 6)), X_SCALE))
    scale = fake.weight_fake_quant.scale
    assert tuple(scale.shape) == shape
    assert fake.weight_fake_quant.ch_axis == axis
    if groups == 1:
        absmax = module.weight.detach().abs().amax((0, 2, 3))
        torch.testing.assert_close(scale, absmax / 127.5)
        assert float(scale[0] / scale[1:].max()) > 50


def test_conv_transpose2d_bias_too_large_for_a_tiny_channel_gets_a_coarser_scale() -> None:
    module, x_q = conv_transpose2d(), codes((2, 4, 5, 6))
    with torch.no_grad():
        module.weight[:, 3] = 0
        module.bias[3] = 100.0
    _, integer = forms_of(module, 1.0)
    assert bool((integer(quantized(x_q, X_SCALE)).plain[:, 3] == 100).all())
