"""Prepare and convert refuse models of the wrong stage, and CALIBRATION in eval is an error with or without scales."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from profiler.errors import ModelError, PrepareError, StateError
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    QuantStub,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
    set_march,
)

Prepare = Callable[[nn.Module], nn.Module]


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), DeQuantStub()).eval()
    net.qconfig = default_calib_8bit_fake_quant_qconfig  # type: ignore[assignment]
    return net


def calibrated(prepare: Prepare) -> nn.Module:
    set_march("bayes")
    model = prepare(make_net()).eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model(torch.randn(2, 3, 8, 8))
    return model.eval()


FRONT_ENDS = pytest.mark.parametrize(("prepare", "to_integer"), [(prepare_qat, convert), (prepare_qat_fx, convert_fx)])


@FRONT_ENDS
def test_prepare_prepared_model_is_refused(prepare: Prepare, to_integer: Prepare) -> None:
    with pytest.raises(PrepareError, match="is prepared already; prepare the float model"):
        prepare(calibrated(prepare))


@FRONT_ENDS
def test_prepare_converted_model_is_refused(prepare: Prepare, to_integer: Prepare) -> None:
    with pytest.raises(PrepareError, match="is converted already; prepare the float model"):
        prepare(to_integer(calibrated(prepare)))


@FRONT_ENDS
def test_convert_converted_model_is_refused(prepare: Prepare, to_integer: Prepare) -> None:
    with pytest.raises(PrepareError, match="is converted already; convert takes a prepared"):
        to_integer(to_integer(calibrated(prepare)))


def test_convert_float_model_is_refused() -> None:
    set_march("bayes")
    with pytest.raises(PrepareError, match="is a float model; convert takes a prepared"):
        convert(make_net())


@pytest.mark.parametrize("prepare", [prepare_qat, prepare_qat_fx])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prepare_half_precision_model_is_refused(prepare: Prepare, dtype: torch.dtype) -> None:
    set_march("bayes")
    with pytest.raises(PrepareError, match=r"1\.weight is torch\.\w+; .* call model\.float\(\) first"):
        prepare(make_net().to(dtype))


@pytest.mark.parametrize("prepare", [prepare_qat, prepare_qat_fx])
def test_prepare_something_else_than_a_module_is_refused(prepare: Callable[[object], object]) -> None:
    set_march("bayes")
    with pytest.raises(ModelError, match=r"expected an nn\.Module, got type"):
        prepare(nn.Conv2d)


@FRONT_ENDS
def test_forward_calibration_in_eval_with_scales_is_an_error(prepare: Prepare, to_integer: Prepare) -> None:
    model = calibrated(prepare)

    with pytest.raises(StateError, match="VALIDATION"):
        model(torch.randn(2, 3, 8, 8))
