from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.quant.op_forms import assert_codes_equal, codes, fake_quant_of, forms_of, on_grid, quantized
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
    "strided": {"stride": (1, 2, 3), "padding": (1, 0, 2)},
    "dilated": {"dilation": (1, 2, 1)},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 4},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
    "no_bias": {"bias": False},
}


def conv3d(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return nn.Conv3d(4, 4, (2, 3, 2), **kwargs)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_conv3d_integer_form_equals_integer_arithmetic(geometry: str, dtype: str) -> None:
    module, x_q = conv3d(**GEOMETRIES[geometry]), codes((2, 4, 5, 6, 7), dtype=dtype)
    out_scale = scale_that_fits(module, x_q, dtype)
    _, integer = forms_of(module, out_scale, dtype)
    assert_codes_equal(integer(quantized(x_q, X_SCALE, dtype)), expected_codes(module, x_q, out_scale, dtype), dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv3d_fake_quant_form_equals_formula_and_integer_form(geometry: str) -> None:
    assert_fake_quant_equals_formula_and_integer(conv3d(**GEOMETRIES[geometry]), codes((3, 4, 7, 8, 9)))


def test_conv3d_integer_high_precision_output_is_accumulator_times_scale() -> None:
    module, x_q = conv3d(), codes((2, 4, 5, 6, 7))
    _, integer = forms_of(module, None)
    acc, acc_scale = accumulator(module, x_q)
    np.testing.assert_array_equal(integer(quantized(x_q, X_SCALE)).numpy(), acc.astype(np.float32) * acc_scale)


def test_conv3d_integer_empty_batch_gives_empty_codes() -> None:
    module, x_q = conv3d(), codes((2, 4, 5, 6, 7))[:0]
    _, integer = forms_of(module, 0.1)
    assert_codes_equal(integer(quantized(x_q, X_SCALE)), expected_codes(module, x_q, 0.1, "qint8"))


def test_conv3d_all_zero_channel_and_tiny_weights_stay_finite() -> None:
    module, x_q = conv3d(), codes((2, 4, 5, 6, 7))
    with torch.no_grad():
        module.weight.zero_()
    fake, integer = forms_of(module, 0.01)
    assert torch.equal(fake(on_grid(x_q, X_SCALE)).int_repr(), integer(quantized(x_q, X_SCALE)).plain)


def test_conv3d_front_ends_convert_and_train() -> None:
    assert_front_ends_convert(conv3d, (2, 4, 5, 6, 7))


@settings(max_examples=15, deadline=None)
@given(
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    padding=st.tuples(*[st.integers(0, 2)] * 3),
    groups=st.sampled_from([1, 2, 4]),
)
def test_conv3d_any_geometry_equals_integer_arithmetic(kernel: Any, stride: Any, padding: Any, groups: int) -> None:
    module = nn.Conv3d(4, 8, kernel, stride, padding, groups=groups)
    x_q = codes((1, 4, 4, 5, 6))
    out_scale = scale_that_fits(module, x_q)
    _, integer = forms_of(module, out_scale)
    assert_codes_equal(integer(quantized(x_q, X_SCALE)), expected_codes(module, x_q, out_scale, "qint8"))


def test_conv3d_unbatched_input_equals_batch_of_one() -> None:
    module, x_q = conv3d(), codes((4, 5, 6, 7))
    fake = fake_quant_of(module, 0.05)
    assert torch.equal(fake(on_grid(x_q, X_SCALE)).plain, fake(on_grid(x_q[None], X_SCALE)).plain[0])
    integer = fake.to_integer()
    assert torch.equal(integer(quantized(x_q, X_SCALE)).plain, integer(quantized(x_q[None], X_SCALE)).plain[0])
