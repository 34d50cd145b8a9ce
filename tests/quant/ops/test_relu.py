from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import QTensor, default_qat_8bit_fake_quant_qconfig
from profiler.quant.swap import fake_quant_form
from tests.quant.op_forms import on_grid, quantized

EVERY_CODE = torch.arange(-128, 128, dtype=torch.int8)
SPELLINGS: list[Any] = [F.relu, torch.relu, lambda x: x.relu(), nn.ReLU(), nn.ReLU(inplace=True), torch.relu_]


@pytest.mark.parametrize("relu", SPELLINGS)
def test_relu_integer_every_code_is_clamped_at_zero_and_keeps_the_scale(relu: Any) -> None:
    y = relu(quantized(EVERY_CODE.clone(), 0.3))
    assert isinstance(y, QTensor)
    assert y.plain.dtype == torch.int8
    assert torch.equal(y.plain, EVERY_CODE.clamp_min(0))
    assert float(y.scale) == float(torch.tensor(0.3))


@pytest.mark.parametrize("relu", SPELLINGS)
def test_relu_fake_quant_equals_integer_form_exactly(relu: Any) -> None:
    y_fq, y_q = relu(on_grid(EVERY_CODE, 0.3)), relu(quantized(EVERY_CODE.clone(), 0.3))
    assert torch.equal(y_fq.int_repr(), y_q.int_repr())
    assert torch.equal(y_fq.dequantize(), y_q.dequantize())


def test_relu_prepared_module_is_the_float_module() -> None:
    module = nn.ReLU()
    assert fake_quant_form(module, default_qat_8bit_fake_quant_qconfig) is module


def test_relu_int16_keeps_its_dtype() -> None:
    y = F.relu(quantized(torch.tensor([-32768, 5], dtype=torch.int16), 0.1, "qint16"))
    assert y.plain.tolist() == [0, 5]
    assert y.qdtype == "qint16"
