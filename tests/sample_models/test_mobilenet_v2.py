"""The healthy sample: accurate in float, as accurate in int8, in both front ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from profiler.quant import (
    DeQuantStub,
    March,
    QuantStub,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_march,
)
from sample_models import digits, mobilenet_v2
from sample_models.mobilenet_v2 import Classifier, InvertedResidual, MobileNetV2
from sample_models.training import WEIGHTS_DIR
from tests.sample_models.quantizing import calibrate, logits_of, sqnr_db


@pytest.fixture(scope="module")
def float_model() -> nn.Module:
    return mobilenet_v2.load()


def eager_calib_model() -> nn.Module:
    model = mobilenet_v2.load()
    assert isinstance(model, Classifier)
    set_march(March.BAYES)
    model.fuse_modules()
    model.qconfig = default_calib_8bit_fake_quant_qconfig  # type: ignore[assignment]
    return calibrate(prepare_qat(model), mobilenet_v2.calibration_batches())


def fx_calib_model() -> nn.Module:
    set_march(March.BAYES)
    calib_model = prepare_qat_fx(mobilenet_v2.load(), {"": default_calib_8bit_fake_quant_qconfig})
    return calibrate(calib_model, mobilenet_v2.calibration_batches())


def test_float_accuracy_is_at_least_97_percent(float_model: nn.Module) -> None:
    assert mobilenet_v2.evaluate(float_model) >= 97.0


def test_weights_are_smaller_than_3_mb() -> None:
    assert (WEIGHTS_DIR / "mobilenet_v2.safetensors").stat().st_size < 3_000_000


def test_load_gives_eval_mode(float_model: nn.Module) -> None:
    assert not any(module.training for module in float_model.modules())


def test_input_stub_has_the_camera_scale(float_model: nn.Module) -> None:
    stubs = [module for module in float_model.modules() if isinstance(module, QuantStub)]

    assert [stub.scale for stub in stubs] == [1 / 128]
    assert sum(isinstance(module, DeQuantStub) for module in float_model.modules()) == 1


def test_fuse_modules_keeps_the_function_and_leaves_no_norm(float_model: nn.Module) -> None:
    fused = mobilenet_v2.load()
    assert isinstance(fused, Classifier)

    fused.fuse_modules()

    absorbed = [module for name, module in fused.named_modules() if name.endswith(("bn", "activate"))]
    assert len(absorbed) > 20
    assert all(isinstance(module, nn.Identity) for module in absorbed)
    reference = logits_of(float_model, digits.normalise)
    torch.testing.assert_close(logits_of(fused, digits.normalise), reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_int8_loses_at_most_half_a_point(front_end: str, float_model: nn.Module) -> None:
    calib_model = eager_calib_model() if front_end == "eager" else fx_calib_model()
    quantized_model = convert(calib_model) if front_end == "eager" else convert_fx(calib_model)

    accuracy, reference = mobilenet_v2.evaluate(float_model), logits_of(float_model, digits.normalise)
    for stage in (calib_model, quantized_model):
        assert accuracy - mobilenet_v2.evaluate(stage) <= 0.51  # two of 397 images
        assert sqnr_db(reference=reference, test=logits_of(stage, digits.normalise)) > 25.0


def test_widen_factor_scales_the_channels() -> None:
    narrow, wide = MobileNetV2(widen_factor=0.5), MobileNetV2(widen_factor=1.0)

    assert (narrow.out_channels, wide.out_channels) == (128, 256)
    assert narrow.conv1.conv.out_channels * 2 == wide.conv1.conv.out_channels == 32


def test_out_indices_chooses_the_stages() -> None:
    model = MobileNetV2(widen_factor=0.5, out_indices=(1, 3, 4)).eval()

    outs = model(torch.zeros(2, 1, 32, 32))

    assert [tuple(out.shape) for out in outs] == [(2, 16, 8, 8), (2, 32, 4, 4), (2, 128, 4, 4)]


def test_inverted_residual_adds_its_input_only_at_equal_shapes() -> None:
    assert InvertedResidual(8, 8, stride=1, expand_ratio=6).with_residual
    assert not InvertedResidual(8, 8, stride=2, expand_ratio=6).with_residual
    assert not InvertedResidual(8, 16, stride=1, expand_ratio=6).with_residual
