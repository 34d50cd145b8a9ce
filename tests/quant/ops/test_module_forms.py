"""Functions as modules in eager and fx models."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import (
    Ceil,
    Cos,
    DeQuantStub,
    Div,
    Erf,
    Exp,
    Floor,
    HardLog,
    Interpolate,
    Log,
    Pow,
    QuantStub,
    Reciprocal,
    Sin,
    Sqrt,
)
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.ops.table_cases import OneFunction
from tests.quant.stages import FRONT_ENDS

FORMS: dict[str, tuple[Any, Any]] = {
    "exp": (Exp(), torch.exp), "log": (Log(), torch.log), "sin": (Sin(), torch.sin), "cos": (Cos(), torch.cos),
    "sqrt": (Sqrt(), torch.sqrt), "reciprocal": (Reciprocal(), torch.reciprocal), "erf": (Erf(), torch.erf),
    "floor": (Floor(), torch.floor), "ceil": (Ceil(), torch.ceil), "pow": (Pow(3), lambda x: x**3),
    "hard_log": (HardLog(), lambda x: torch.log(x).clamp_min(-10)),
    "nearest": (Interpolate(scale_factor=2), lambda x: F.interpolate(x, scale_factor=2)),
    "bilinear": (Interpolate((9, 7), mode="bilinear", align_corners=True),
                 lambda x: F.interpolate(x, (9, 7), mode="bilinear", align_corners=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_form_in_float_is_the_function_and_quantized_is_near_it(name: str) -> None:
    form, function = FORMS[name]
    torch.manual_seed(0)
    x = torch.rand(2, 3, 5, 4) * 2 + 0.3
    assert torch.equal(form(x), function(x))
    step_of_input = float(x.max()) / 127.5
    for stage, convert in FRONT_ENDS.values():
        calib = stage(OneFunction(form), [x])
        converted = convert(calib)
        on_grid = (x / step_of_input).round() * step_of_input
        expected = function(on_grid)
        tolerance = (1.0 if name in ("floor", "ceil") else 0.04) * float(expected.abs().max())
        torch.testing.assert_close(converted(x), expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(converted(x), calib(x), rtol=0, atol=0.01 * float(expected.abs().max()) + 1e-6)
        assert_equals_onnx(converted, x)


class Quotient(nn.Module):
    def __init__(self, form: nn.Module) -> None:
        super().__init__()
        self.quant, self.other, self.dequant, self.form = QuantStub(), QuantStub(), DeQuantStub(), form

    def forward(self, x: Any) -> Any:
        return self.dequant(self.form(self.quant(x), self.other(2 - x / 2)))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize(("form", "function"), [(Div(), torch.div), (Pow(), torch.pow)])
def test_form_of_two_operands_is_near_the_function(front_end: str, form: nn.Module, function: Any) -> None:
    stage, convert = FRONT_ENDS[front_end]
    x = torch.linspace(0.1, 2, 100).reshape(10, 10)
    converted = convert(stage(Quotient(form), [x]))
    torch.testing.assert_close(converted(x), function(x, 2 - x / 2), rtol=0, atol=0.05)
    assert_equals_onnx(converted, x)


@pytest.mark.parametrize("name", FORMS)
def test_form_is_named_as_its_class_and_can_be_copied_and_pickled(name: str) -> None:
    form = FORMS[name][0]
    x = torch.rand(1, 2, 3, 3) + 0.5
    for other in (copy.deepcopy(form), pickle.loads(pickle.dumps(form))):
        assert type(other) is type(form)
        assert torch.equal(other(x), form(x))
    assert form._get_name() == type(form).__name__
