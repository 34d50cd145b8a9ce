from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from profiler.quant import fuse_known_modules
from profiler.quant.ops.epilogue import Epilogue
from tests.quant.op_forms import (
    assert_codes_equal,
    assert_nearly_same_codes,
    assert_within_one_step,
    codes,
    fake_quantized_float64,
    forms_of,
    on_grid,
    quantized,
)
from tests.quant.ops.gemm_cases import accumulator, bias_in_steps, expected_codes, scale_that_fits, scales_and_codes

X_SCALE = 0.017
SHAPES = [(5, 24), (24,), (2, 3, 24), (2, 3, 4, 24), (1, 24), (0, 24)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_linear_integer_form_equals_integer_arithmetic(shape: tuple[int, ...], has_bias: bool, dtype: str) -> None:
    module, x_q = nn.Linear(24, 7, bias=has_bias), codes(shape, dtype=dtype)
    out_scale = scale_that_fits(module, x_q, X_SCALE, dtype)
    _, integer = forms_of(module, out_scale, dtype)
    expected = expected_codes(module, x_q, X_SCALE, out_scale, dtype=dtype)
    assert_codes_equal(integer(quantized(x_q, X_SCALE, dtype)), expected, dtype)


@settings(max_examples=40, deadline=None)
@given(
    fan_in=st.integers(1, 300),
    fan_out=st.integers(1, 9),
    x_scale=st.floats(1e-6, 1e3),
    gain=st.floats(1e-4, 1e3),
    dtype=st.sampled_from(["qint8", "qint16"]),
)
def test_linear_integer_any_size_and_scale_equals_integer_arithmetic(
    fan_in: int, fan_out: int, x_scale: float, gain: float, dtype: str
) -> None:
    module, x_q = nn.Linear(fan_in, fan_out), codes((6, fan_in), fan_in, dtype)
    module.weight.data *= gain
    module.bias.data *= gain * x_scale
    out_scale = scale_that_fits(module, x_q, x_scale, dtype)
    _, integer = forms_of(module, out_scale, dtype)
    expected = expected_codes(module, x_q, x_scale, out_scale, dtype=dtype)
    assert_codes_equal(integer(quantized(x_q, x_scale, dtype)), expected, dtype)


def test_linear_fake_quant_form_equals_formula_in_float64() -> None:
    module, x_q = nn.Linear(64, 32), codes((100, 64))
    out_scale = scale_that_fits(module, x_q, X_SCALE)
    fake, integer = forms_of(module, out_scale)
    w_scale, w_q = scales_and_codes(module)
    x = x_q.numpy() * np.float64(np.float32(X_SCALE))
    y = x @ (w_q * w_scale.astype(np.float64)[:, None]).T + bias_in_steps(module, X_SCALE)
    y_fq = fake(on_grid(x_q, X_SCALE))
    assert_within_one_step(y_fq, fake_quantized_float64(y, out_scale), out_scale)
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, X_SCALE)))


@pytest.mark.parametrize("activation", ["", "relu", "relu6"])
def test_linear_integer_fused_add_equals_integer_arithmetic(activation: str) -> None:
    module, x_q, other_q = nn.Linear(24, 7), codes((5, 24)), codes((5, 7), seed=1)
    fused: Any = fuse_known_modules([module, nn.ReLU()])[0]
    fused.epilogue = Epilogue(True, activation)
    _, integer = forms_of(fused, 6.4 / 127)
    expected = expected_codes(module, x_q, X_SCALE, 6.4 / 127, activation=activation, other=(other_q, 0.05))
    assert_codes_equal(integer.add(quantized(x_q, X_SCALE), quantized(other_q, 0.05)), expected)


def test_linear_integer_widest_int8_fan_in_is_exact() -> None:
    module = nn.Linear(131_071, 2)
    module.weight.data = torch.full_like(module.weight, -0.1)
    module.weight.data[1] = 0.1
    x_q = torch.full((1, 131_071), -128, dtype=torch.int8)
    _, integer = forms_of(module, 10.0)
    assert_codes_equal(integer(quantized(x_q, 0.001)), expected_codes(module, x_q, 0.001, 10.0))


def test_linear_integer_high_precision_output_is_accumulator_times_scale() -> None:
    module, x_q = nn.Linear(24, 7), codes((5, 24))
    _, integer = forms_of(module, None)
    acc, acc_scale = accumulator(module, x_q, X_SCALE)
    np.testing.assert_array_equal(integer(quantized(x_q, X_SCALE)).numpy(), acc.astype(np.float32) * acc_scale)


def test_linear_fused_batch_norm_equals_float() -> None:
    module, norm = nn.Linear(24, 7), nn.BatchNorm1d(7)
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.3, 3)
    x = torch.randn(9, 24)
    expected = norm.eval()(module(x))
    torch.testing.assert_close(fuse_known_modules([module, norm])[0](x), expected, rtol=1e-5, atol=1e-5)
