"""R97: the article's scenarios A, B and C on its own network, with only the imports changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from profiler.quant import (
    FakeQuantState,
    March,
    check_model,
    compile_model,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_8bit_weight_32bit_out_fake_quant_qconfig,
    default_qat_16bit_fake_quant_qconfig,
    load_compiled,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
    set_march,
)
from sample_models.train_yolov3 import train_detector
from sample_models.yolov3_data import make_scenes
from sample_models.yolov3_loss import SigmoidLoss, SquaredLoss
from tests.quant.acceptance.article import (
    BATCHES,
    EXAMPLE,
    IMAGES,
    LOSSES,
    PLAN,
    calibrate,
    configure,
    deploy_model,
    detector,
    equal,
    scenario_a,
    sqnr_db,
)


def test_r97_scenario_a_quantized_model_follows_float_and_qat() -> None:
    model, qat_model, quantized_model = scenario_a()

    with torch.no_grad():
        reference, qat, quantized = model(IMAGES), qat_model(IMAGES), quantized_model(IMAGES)

    assert sqnr_db(reference=reference, test=qat) > 12.0  # eight canvases of training moved the weights
    assert sqnr_db(reference=qat, test=quantized) > 25.0
    assert all(len(torch.unique(m)) > 256 for m in quantized)  # high-precision outputs


def test_r97_scenario_a_losses_stay_float_and_keep_their_class() -> None:
    _, qat_model, quantized_model = scenario_a()

    for stage in (qat_model, quantized_model):
        head = stage.bbox_head
        assert [type(getattr(head, name)) for name in LOSSES] == [SigmoidLoss, SigmoidLoss, SigmoidLoss, SquaredLoss]
        scenes = make_scenes(2, seed=12)
        losses = head.loss(stage(scenes.images()), scenes.boxes, scenes.labels)
        assert all(bool(value.isfinite()) for value in losses.values())


def test_r97_scenario_a_reassembled_model_equals_the_whole() -> None:
    quantized_model = scenario_a()[2]

    assert equal(deploy_model()(IMAGES), quantized_model(IMAGES))


def test_r97_scenario_a_traced_model_equals_the_untraced_one() -> None:
    traced = torch.jit.trace(deploy_model(), EXAMPLE)
    traced.to(torch.device("cpu"))

    outputs, expected = traced(EXAMPLE), deploy_model()(EXAMPLE)

    assert equal(outputs, expected)
    assert all(type(m) is Tensor for m in expected)


def test_r97_scenario_a_checks_and_compiles_the_traced_model(tmp_path: Path) -> None:
    traced = torch.jit.trace(deploy_model(), EXAMPLE)

    assert check_model(traced, EXAMPLE, advice=1) == 0
    assert compile_model(traced, [EXAMPLE], opt=0, hbm=str(tmp_path / "model.hbm")) == 0

    for expected, got in zip(deploy_model()(EXAMPLE), load_compiled(tmp_path / "model.hbm")(EXAMPLE), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


HEAD_OUT = {f"bbox_head.convs_pred.{i}": default_calib_8bit_weight_32bit_out_fake_quant_qconfig for i in range(3)}
QAT_OUT = {f"bbox_head.convs_pred.{i}": default_qat_8bit_weight_32bit_out_fake_quant_qconfig for i in range(3)}


def test_r97_scenario_b_calibration_three_states_and_hand_over(tmp_path: Path) -> None:
    model, device = detector(), torch.device("cpu")
    set_march(March.BAYES)
    calib_model: Any = prepare_qat_fx(model, {"": default_calib_8bit_fake_quant_qconfig, "module_name": HEAD_OUT}).to(
        device
    )
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.CALIBRATION)
    with torch.no_grad():
        for x in BATCHES:
            calib_model(x)
    torch.save(calib_model.state_dict(), tmp_path / "calib.pth")
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.VALIDATION)
    evaluated = calib_model(IMAGES)
    calib_model.load_state_dict(torch.load(tmp_path / "calib.pth"))

    assert equal(calib_model(IMAGES), evaluated)  # a load after VALIDATION leaves VALIDATION
    assert sqnr_db(reference=model(IMAGES), test=evaluated) > 15.0

    qat_model: Any = prepare_qat_fx(model, {"": default_qat_8bit_fake_quant_qconfig, "module_name": QAT_OUT}).to(device)
    qat_model.load_state_dict(torch.load(tmp_path / "calib.pth"))
    set_fake_quantize(qat_model.eval(), FakeQuantState.VALIDATION)
    assert equal(qat_model(IMAGES), evaluated)  # weights and scales have come over

    qat_model.train()
    set_fake_quantize(qat_model, FakeQuantState.QAT)
    train_detector(qat_model, PLAN, head=model.bbox_head)
    set_fake_quantize(qat_model.eval(), FakeQuantState.VALIDATION)
    qat, quantized = qat_model(IMAGES), convert_fx(qat_model)(IMAGES)
    assert not equal(qat, evaluated)
    assert sqnr_db(reference=qat, test=quantized) > 25.0


def test_r97_scenario_b_converted_fx_model_traces_bit_for_bit() -> None:
    qconfigs = {"": default_calib_8bit_fake_quant_qconfig, "module_name": HEAD_OUT}
    quantized_model = convert_fx(calibrate(prepare_qat_fx(detector(), qconfigs)))

    traced = torch.jit.trace(quantized_model, EXAMPLE)

    assert equal(traced(EXAMPLE), quantized_model(EXAMPLE))


@pytest.mark.parametrize("stage", ["calib", "qat"])
def test_r97_scenario_c_one_module_in_int16_and_the_text_of_the_model(stage: str) -> None:
    is_calib = stage == "calib"
    model = configure(detector())
    if is_calib:
        model.qconfig = default_calib_8bit_fake_quant_qconfig
        for m in model.bbox_head.convs_pred:
            m.qconfig = default_calib_8bit_weight_32bit_out_fake_quant_qconfig()
    int16 = default_calib_16bit_fake_quant_qconfig if is_calib else default_qat_16bit_fake_quant_qconfig
    model.neck.detect2.conv1.qconfig = int16()
    prepared = prepare_qat(model)
    if is_calib:
        calibrate(prepared)
    else:
        train_detector(prepared, PLAN)

    conv = prepared.neck.detect2.conv1.conv
    assert conv.activation_post_process.dtype == "qint16"
    assert prepared.neck.detect2.conv2.conv.activation_post_process.dtype == "qint8"
    text = str(conv)
    assert "dtype=qint16, qscheme=torch.per_tensor_symmetric, ch_axis=-1" in text
    assert "dtype=qint8, qscheme=torch.per_channel_symmetric, ch_axis=0" in text
    pred = str(prepared.bbox_head.convs_pred[0])
    assert "(weight_fake_quant): FakeQuantize(" in pred
    assert "\n  (activation_post_process): FakeQuantize" not in pred
    quantized_model = convert(prepared.eval())
    assert quantized_model.neck.detect2.conv1.conv.out_dtype == "qint16"
    assert sqnr_db(reference=prepared(IMAGES), test=quantized_model(IMAGES)) > 25.0
