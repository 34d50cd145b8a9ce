"""A checkpoint in a fresh process: convert works at once, given scales stay, ops without a scale refuse codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import NotCalibratedError
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    FloatFunctional,
    QuantStub,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat,
    set_fake_quantize,
    set_march,
)


class AddsOutside(nn.Module):
    """Its add runs behind the DeQuantStub; with `inside` before it."""

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(scale), DeQuantStub()
        self.conv, self.add = nn.Conv2d(1, 2, 3), FloatFunctional()
        self.inside = False
        self.qconfig = default_calib_8bit_fake_quant_qconfig

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.quant(x))
        if self.inside:
            y = self.add.add(y, y)
            return torch.Tensor(self.dequant(y))
        y = self.dequant(y)
        return torch.Tensor(self.add.add(y, y))


def prepared(scale: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    set_march("bayes")
    return prepare_qat(AddsOutside(scale).eval()).eval()


def calibrated() -> nn.Module:
    model = prepared()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    with torch.no_grad():
        model(torch.randn(2, 1, 8, 8))
    model.eval()
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    return model


@torch.no_grad()
def test_convert_after_loading_gives_the_integers_of_the_calibrated_model() -> None:
    model, fresh = calibrated(), prepared()
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 8, 8)

    assert torch.equal(convert(fresh)(x), convert(model)(x))


@torch.no_grad()
def test_convert_after_loading_op_without_a_scale_refuses_codes_when_it_runs() -> None:
    fresh = prepared()
    fresh.load_state_dict(calibrated().state_dict())
    quantized = convert(fresh)
    quantized.inside = True

    with pytest.raises(NotCalibratedError, match="converted without a scale"):
        quantized(torch.randn(2, 1, 8, 8))


def test_load_keeps_a_given_input_scale() -> None:
    fresh = prepared(scale=1 / 128)
    fresh.load_state_dict(calibrated().state_dict())

    assert float(fresh.quant.activation_post_process.scale) == 1 / 128  # type: ignore[union-attr,arg-type]
