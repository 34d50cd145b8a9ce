"""What the tests of the samples do with a network: calibrate it, and measure its logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from profiler.quant import FakeQuantState, convert, convert_fx, set_fake_quantize, set_march
from sample_models import digits
from sample_models.flows import Sample, calibrated_eager, calibrated_fx, fuse_parts


@torch.no_grad()
def calibrate(calib_model: nn.Module, batches: list[torch.Tensor]) -> nn.Module:
    """Observes the batches; the model is then ready to be evaluated in int8."""
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.CALIBRATION)
    for batch in batches:
        calib_model(batch)
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.VALIDATION)
    return calib_model


@torch.no_grad()
def logits_of(model: nn.Module, preprocess: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Logits `[397, 10]` on the held-out images."""
    logits: torch.Tensor = model(preprocess(digits.test_set()[0]))
    return logits


def sqnr_db(*, reference: torch.Tensor, test: torch.Tensor) -> float:
    """Signal over error in dB; higher is better."""
    return float(10 * torch.log10(reference.square().sum() / (test - reference).square().sum()))


def int8_stages(sample: Sample, front_end: str) -> tuple[nn.Module, nn.Module]:
    """Calibrated and converted model of a sample, by one of the front ends ("eager", "fx")."""
    set_march("bayes")
    model = sample.load()
    if front_end == "fx":
        calib_model = calibrated_fx(sample, model)
        return calib_model, convert_fx(calib_model)
    fuse_parts(sample, model)
    calib_model = calibrated_eager(sample, model)
    return calib_model, convert(calib_model)
