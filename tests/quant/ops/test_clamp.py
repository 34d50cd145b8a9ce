from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from profiler.quant import DeQuantStub, QuantStub
from profiler.quant.ops.functional import FunctionOp
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.table_cases import TableTests, codes_of
from tests.quant.stages import FRONT_ENDS


class TestClamp(TableTests):
    name = "clamp"
    truth = staticmethod(lambda x: np.clip(x, -0.4, 1.5))
    spellings = (lambda x: x.clamp(-0.4, 1.5), lambda x: torch.clip(x, min=-0.4, max=1.5))
    bound: ClassVar = {"min": -0.4, "max": 1.5}


class TestClampMin(TableTests):
    name = "clamp"
    truth = staticmethod(lambda x: np.maximum(x, 0.25))
    spellings = (lambda x: x.clamp_min(0.25), lambda x: torch.clamp(x, 0.25), lambda x: x.clamp_(min=0.25))
    bound: ClassVar = {"min": 0.25}


class TestClampAbove(TableTests):
    name = "clamp"
    truth = staticmethod(lambda x: np.minimum(x, 0.25))
    spellings = (lambda x: x.clamp(max=0.25),)
    bound: ClassVar = {"max": 0.25}


def test_clamp_quantized_bounds_integer_equals_arithmetic_on_codes() -> None:
    x_q, low_q, high_q = codes((4, 50), 1), codes((4, 1), 2), codes((50,), 3)
    fake, integer = forms_of(FunctionOp("clamp", torch.clamp), 0.07)
    scales = (0.05, 0.01, 0.02)
    y_q = integer(*(quantized(c, s) for c, s in zip((x_q, low_q, high_q), scales, strict=True)))
    steps = [
        codes_of(c.numpy() * np.float64(np.float32(s)), 0.07) for c, s in zip((x_q, low_q, high_q), scales, strict=True)
    ]
    expected = np.minimum(np.maximum(steps[0], steps[1]), steps[2])
    assert np.abs(y_q.plain.numpy().astype(np.int64) - expected).max() <= 1
    y_fq = fake(*(on_grid(c, s) for c, s in zip((x_q, low_q, high_q), scales, strict=True)))
    assert_nearly_same_codes(y_fq, y_q, 0.99)


def test_clamp_one_quantized_bound_and_a_number() -> None:
    x_q = codes((300,), 1)
    _, integer = forms_of(FunctionOp("clamp", torch.clamp, {"max": 1.0}), 0.05)
    y_q = integer(quantized(x_q, 0.05), quantized(torch.tensor([-10], dtype=torch.int8), 0.05))
    assert_codes_equal(y_q, np.clip(x_q.numpy().astype(np.int64), -10, 20))


class BoundedByTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant, self.other = QuantStub(), DeQuantStub(), QuantStub()

    def forward(self, x: Any) -> Any:
        return self.dequant(torch.clamp(self.quant(x), min=self.other(x * 0.5)))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_clamp_by_tensor_runs_in_both_front_ends(front_end: str) -> None:
    stage, convert = FRONT_ENDS[front_end]
    x = torch.linspace(-3, 3, 400).reshape(20, 20)
    calib = stage(BoundedByTensor(), [x])
    torch.testing.assert_close(convert(calib)(x), torch.maximum(x, x / 2), rtol=0, atol=0.06)
