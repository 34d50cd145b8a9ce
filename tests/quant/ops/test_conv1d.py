from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from profiler.quant import fuse_known_modules
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

X_SCALE = 0.021
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 3, "padding": 2},
    "dilated": {"dilation": 3},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 4},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "no_bias": {"bias": False},
}


def conv1d(**kwargs: Any) -> nn.Conv1d:
    return nn.Conv1d(4, 4, 3, **kwargs)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_conv1d_integer_form_equals_integer_arithmetic(geometry: str, dtype: str) -> None:
    module, x_q = conv1d(**GEOMETRIES[geometry]), codes((3, 4, 31), dtype=dtype)
    out_scale = scale_that_fits(module, x_q, X_SCALE, dtype)
    _, integer = forms_of(module, out_scale, dtype)
    expected = expected_codes(module, x_q, X_SCALE, out_scale, dtype=dtype)
    assert_codes_equal(integer(quantized(x_q, X_SCALE, dtype)), expected, dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv1d_fake_quant_form_equals_formula_and_integer_form(geometry: str) -> None:
    module, x_q = conv1d(**GEOMETRIES[geometry]), codes((3, 4, 200))
    out_scale = scale_that_fits(module, x_q, X_SCALE)
    fake, integer = forms_of(module, out_scale)
    w_scale, w_q = scales_and_codes(module)
    double = conv1d(**GEOMETRIES[geometry]).double()
    double.weight.data = torch.tensor(w_q * w_scale.astype(np.float64).reshape(-1, 1, 1))
    if module.bias is not None:
        double.bias.data = torch.tensor(bias_in_steps(module, X_SCALE))
    y = double(x_q.double() * float(np.float32(X_SCALE))).detach().numpy()
    y_fq = fake(on_grid(x_q, X_SCALE))
    assert_within_one_step(y_fq, fake_quantized_float64(y, out_scale), out_scale)
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, X_SCALE)))


def test_conv1d_integer_fused_relu6_equals_integer_arithmetic() -> None:
    module, x_q = conv1d(), codes((3, 4, 31))
    fused = fuse_known_modules([module, nn.ReLU6()])[0]
    _, integer = forms_of(fused, 6.4 / 127)
    expected = expected_codes(module, x_q, X_SCALE, 6.4 / 127, activation="relu6")
    assert_codes_equal(integer(quantized(x_q, X_SCALE)), expected)


def test_conv1d_fused_batch_norm_equals_float() -> None:
    module, norm = conv1d(), nn.BatchNorm1d(4)
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.3, 3)
    x = torch.randn(2, 4, 20)
    expected = norm.eval()(module(x))
    torch.testing.assert_close(fuse_known_modules([module, norm])[0](x), expected, rtol=1e-5, atol=1e-5)


def test_conv1d_integer_high_precision_output_is_accumulator_times_scale() -> None:
    module, x_q = conv1d(), codes((3, 4, 31))
    _, integer = forms_of(module, None)
    acc, acc_scale = accumulator(module, x_q, X_SCALE)
    np.testing.assert_array_equal(integer(quantized(x_q, X_SCALE)).numpy(), acc.astype(np.float32) * acc_scale)


def test_conv1d_integer_empty_batch_gives_empty_codes() -> None:
    _, integer = forms_of(conv1d(), 0.1)
    assert_codes_equal(integer(quantized(codes((0, 4, 9)), X_SCALE)), np.zeros((0, 4, 7), np.int64))
