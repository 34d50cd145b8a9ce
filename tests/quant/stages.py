"""From a float network to its calib, validated and converted stages in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from profiler.quant import (
    FakeQuantState,
    QConfig,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
)


def run(model: nn.Module, batch: Any) -> Any:
    """A dict batch goes in as keyword arguments."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


def calibrate(model: nn.Module, batches: Iterable[Any]) -> Any:
    """Observe the batches, then go to VALIDATION."""
    model.eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    with torch.no_grad():
        for batch in batches:
            run(model, batch)
    model.eval()
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    return model


def eager(model: nn.Module, batches: Iterable[Any], qconfig: QConfig = default_calib_8bit_fake_quant_qconfig) -> Any:
    """Calibrated eager model in VALIDATION."""
    model.qconfig = qconfig
    return calibrate(prepare_qat(model), batches)


def fx(model: nn.Module, batches: Iterable[Any], qconfig: QConfig = default_calib_8bit_fake_quant_qconfig) -> Any:
    """Calibrated fx model in VALIDATION."""
    return calibrate(prepare_qat_fx(model, {"": qconfig}), batches)


FRONT_ENDS = {"eager": (eager, convert), "fx": (fx, convert_fx)}
