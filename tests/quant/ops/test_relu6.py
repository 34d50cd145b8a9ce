from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.quant.integer_reference import INT8, INT16, requantized
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

S = np.float32
EVERY_CODE = torch.arange(-128, 128, dtype=torch.int8)


@pytest.mark.parametrize("x_scale", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("out_scale", [0.02, 6 / 127, 0.1, 4.0])
def test_relu6_integer_every_code_equals_integer_arithmetic(x_scale: float, out_scale: float) -> None:
    _, integer = forms_of(nn.ReLU6(), out_scale)
    limit = int(np.rint(S(6) / S(out_scale)))
    expected = requantized(EVERY_CODE.numpy().astype(np.int64), S(x_scale) / S(out_scale))
    expected = np.clip(expected, 0, min(limit, INT8[1]))
    assert_codes_equal(integer(quantized(EVERY_CODE, x_scale)), expected)


@pytest.mark.parametrize("out_scale", [0.02, 6 / 127, 0.1])
def test_relu6_fake_quant_equals_formula_and_integer_form(out_scale: float) -> None:
    fake, integer = forms_of(nn.ReLU6(), out_scale)
    y_fq = fake(on_grid(EVERY_CODE, 0.0713))
    real = np.clip(EVERY_CODE.numpy() * np.float64(S(0.0713)), 0, 6)
    assert_within_one_step(y_fq, fake_quantized_float64(real, out_scale), out_scale)
    assert_nearly_same_codes(y_fq, integer(quantized(EVERY_CODE, 0.0713)))


def test_relu6_integer_int16_equals_integer_arithmetic() -> None:
    x_q = codes((2000,), dtype="qint16")
    _, integer = forms_of(nn.ReLU6(), 0.0002, "qint16")
    expected = requantized(x_q.numpy().astype(np.int64), S(0.0003) / S(0.0002), INT16)
    expected = np.clip(expected, 0, int(np.rint(S(6) / S(0.0002))))
    assert_codes_equal(integer(quantized(x_q, 0.0003, "qint16")), expected, "qint16")


def test_relu6_inplace_module_changes_its_input_as_the_float_module_does() -> None:
    fake, integer = forms_of(nn.ReLU6(inplace=True), 0.1)
    for form, x in ((fake, on_grid(EVERY_CODE, 0.3)), (integer, quantized(EVERY_CODE.clone(), 0.3))):
        y = form(x)
        assert torch.equal(x.dequantize(), y.dequantize())
        assert float(x.dequantize().min()) == 0


def test_relu6_module_not_inplace_leaves_its_input_alone() -> None:
    for form, x in zip(forms_of(nn.ReLU6(), 0.1), (on_grid(EVERY_CODE, 0.3), quantized(EVERY_CODE, 0.3)), strict=True):
        before = x.plain.clone()
        form(x)
        assert torch.equal(x.plain, before)
