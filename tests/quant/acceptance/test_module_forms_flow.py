"""Every module form for eager models goes from prepare through a QAT step to integers and the exported file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.quant import (
    Ceil,
    Cos,
    DeQuantStub,
    Div,
    Erf,
    Exp,
    FakeQuantState,
    FloatFunctional,
    Floor,
    HardLog,
    Interpolate,
    Log,
    Pow,
    QuantStub,
    Reciprocal,
    SegmentLUT,
    Sin,
    Sqrt,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_16bit_fake_quant_qconfig,
    set_fake_quantize,
)
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.stages import FRONT_ENDS

FORMS: dict[str, Callable[[], nn.Module]] = {
    "exp": Exp,
    "log": Log,
    "hard_log": HardLog,
    "sin": Sin,
    "cos": Cos,
    "sqrt": Sqrt,
    "reciprocal": Reciprocal,
    "erf": Erf,
    "floor": Floor,
    "ceil": Ceil,
    "pow": lambda: Pow(2.0),
    "interpolate": lambda: Interpolate(scale_factor=2.0, mode="bilinear"),
    "lut_evenly": lambda: SegmentLUT(torch.tanh),
    "lut_curvature": lambda: SegmentLUT(torch.tanh, auto_divide_strategy="curvature"),
    "lut_points": lambda: SegmentLUT(
        torch.tanh, True, dividing_points=[0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0], input_range=(0.0, 4.0)
    ),
}
TWO_OPERANDS: dict[str, Callable[[], Any]] = {"div": Div, "floor_div": lambda: Div("floor"), "add": FloatFunctional}


class Net(nn.Module):
    """conv, positive values, the form, conv."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.act, self.sum = nn.Sigmoid(), FloatFunctional()
        self.is_pair = name in TWO_OPERANDS
        self.form = (TWO_OPERANDS if self.is_pair else FORMS)[name]()

    def forward(self, x: Tensor) -> Any:
        x = self.first(self.quant(x))
        y = self.sum.add_scalar(self.act(x), 0.5)
        if self.is_pair:
            z = self.form.add(x, y) if isinstance(self.form, FloatFunctional) else self.form(x, y)
        else:
            z = self.form(y)
        return self.dequant(self.last(z))


@pytest.mark.parametrize("front", FRONT_ENDS)
@pytest.mark.parametrize("name", [*FORMS, *TWO_OPERANDS])
def test_module_form_from_prepare_to_the_file(name: str, front: str) -> None:
    torch.manual_seed(0)
    is_wide = name in ("lut_evenly", "lut_curvature", "lut_points")
    qconfig = default_qat_16bit_fake_quant_qconfig if is_wide else default_qat_8bit_fake_quant_qconfig
    model, x = Net(name).eval(), torch.randn(2, 3, 6, 6)
    expected = model(x)
    prepare, convert = FRONT_ENDS[front]
    qat = prepare(model, [x], qconfig)

    error = (qat(x) - expected).detach()
    is_stepped = name in ("floor", "ceil", "floor_div")  # one code beside a step is a whole step
    assert float(error.square().mean().sqrt()) < (0.5 if is_stepped else 0.05) * float(expected.detach().std())
    qat.train()
    set_fake_quantize(qat, FakeQuantState.QAT)
    qat(x).square().mean().backward()
    grads = [p.grad for p in qat.parameters() if p.grad is not None]
    assert grads
    assert all(bool(grad.isfinite().all()) for grad in grads)
    qat.eval()
    set_fake_quantize(qat, FakeQuantState.VALIDATION)
    converted = convert(qat)
    apart = (converted(x) - qat(x)).detach().abs()
    assert float(apart.max()) < 0.05 * float(expected.detach().abs().max())
    assert not [e for e in qat.quant_effects if e.op == "form" and e.actual == "torch.float32"]
    assert_equals_onnx(converted, x)
