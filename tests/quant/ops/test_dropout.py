from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import QTensor, default_qat_8bit_fake_quant_qconfig
from profiler.quant.swap import fake_quant_form
from tests.quant.op_forms import codes, on_grid, quantized

DROPOUTS: list[Any] = [nn.Dropout(0.5).eval(), nn.Dropout2d(0.5).eval(), lambda x: F.dropout(x, 0.5, training=False)]


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_dropout_eval_passes_codes_and_scale_on(dropout: Any) -> None:
    x_q = codes((2, 3, 4, 4))
    y = dropout(quantized(x_q, 0.3))
    assert isinstance(y, QTensor)
    assert torch.equal(y.plain, x_q)
    assert torch.equal(dropout(on_grid(x_q, 0.3)).int_repr(), x_q)


def test_dropout_training_drops_and_scales_values() -> None:
    y = nn.Dropout(0.5).train()(on_grid(codes((1000,)), 0.3))
    assert isinstance(y, QTensor)
    assert 300 < int((y.dequantize() == 0).sum()) < 700


def test_dropout_prepared_module_is_the_float_module() -> None:
    module = nn.Dropout(0.1)
    assert fake_quant_form(module, default_qat_8bit_fake_quant_qconfig) is module
