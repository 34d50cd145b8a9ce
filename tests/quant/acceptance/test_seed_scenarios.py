"""R97 and R36: the article's scenarios A, B and C on its own network, with only the imports changed."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import StateError
from profiler.quant import (
    DeQuantStub,
    FakeQuantize,
    FakeQuantState,
    March,
    QTensor,
    QuantStub,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_8bit_weight_32bit_out_fake_quant_qconfig,
    default_qat_16bit_fake_quant_qconfig,
    fuse_known_modules,
    get_default_qat_out_qconfig,
    get_default_qat_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
    set_march,
)
from sample_models.train_yolov3 import DetectorPlan, train_detector
from sample_models.yolov3 import DeployModel
from sample_models.yolov3_data import make_scenes
from sample_models.yolov3_loss import SigmoidLoss, SquaredLoss
from sample_models.yolov3_network import YOLOV3

LOSSES = ("loss_cls", "loss_conf", "loss_xy", "loss_wh")
PLAN = DetectorPlan(epochs=1, pool=8, canvases=8, batch_size=4, learning_rate=1e-4)
IMAGES = make_scenes(8, seed=11).images()
BATCHES = list(torch.split(IMAGES, 4))
EXAMPLE = IMAGES[:1]


def detector() -> Any:
    """The article's network, narrow, with norms that have seen data."""
    torch.manual_seed(0)
    model = YOLOV3(widen_factor=0.25, neck_channels=16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    for conv in model.bbox_head.convs_pred:
        nn.init.normal_(conv.weight, std=0.2)
    with torch.no_grad():
        for batch in BATCHES:
            model(batch)
    return model.eval()


def equal(first: Any, second: Any) -> bool:
    """Bit for bit, tensor by tensor."""
    return len(first) == len(second) and all(map(torch.equal, first, second))


def sqnr_db(*, reference: Any, test: Any) -> float:
    """Signal over error of all maps in dB; equal: inf."""
    error = sum(float((t - r).detach().square().sum()) for r, t in zip(reference, test, strict=True))
    signal = sum(float(r.detach().square().sum()) for r in reference)
    return 10 * math.log10(signal / error) if error else math.inf


def configure(model: Any) -> Any:
    """The article's lines between the float model and prepare."""
    set_march(March.BAYES)
    for part in (model.backbone, model.neck, model.bbox_head):
        part.fuse_modules()
    model.qconfig = get_default_qat_qconfig()
    for m in model.bbox_head.convs_pred:
        m.qconfig = get_default_qat_out_qconfig()
    for name in LOSSES:
        getattr(model.bbox_head, name).qconfig = None
    return model


@torch.no_grad()
def calibrate(model: Any) -> Any:
    model.eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    for x in BATCHES:
        model(x)
    model.eval()
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    return model


@functools.cache
def scenario_a() -> tuple[Any, Any, Any]:
    """Float, trained QAT and quantized model of scenario A."""
    model = detector()
    qat_model = prepare_qat(configure(copy.deepcopy(model)))
    qat_model.to(torch.device("cpu"))
    train_detector(qat_model, PLAN)
    return model, qat_model, convert(qat_model.eval())


@functools.cache
def deploy_model() -> Any:
    quantized_model = scenario_a()[2]
    return DeployModel(quantized_model.backbone, quantized_model.neck, quantized_model.bbox_head).eval()


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


def test_r97_a1_a2_fuse_known_modules_serves_pytorchs_own_fuse_modules_in_train_mode() -> None:
    """The article's block with its own names, fused with statistics that training left behind."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_name = "norm_of_mine"
            self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm_of_mine = nn.BatchNorm2d(8)
            self.activate = nn.ReLU6(inplace=True)

        def forward(self, x: Tensor) -> Any:
            return self.activate(getattr(self, self.norm_name)(self.conv(x)))

        def fuse_modules(self) -> None:
            names = ["conv", self.norm_name, "activate"]
            torch.quantization.fuse_modules(self, names, inplace=True, fuser_func=fuse_known_modules)

    block, x = Block(), 3 * torch.randn(4, 3, 8, 8) + 1
    for _ in range(3):
        block(x)
    expected = copy.deepcopy(block).eval()(x)
    assert block.training

    block.fuse_modules()

    assert isinstance(block.norm_of_mine, nn.Identity)
    assert isinstance(block.activate, nn.Identity)
    torch.testing.assert_close(block.eval()(x), expected, rtol=0, atol=1e-5)


def test_r97_a3_qconfig_is_inherited_and_a_childs_own_wins() -> None:
    _, qat_model, _ = scenario_a()

    assert isinstance(qat_model.neck.detect1.conv1.conv.activation_post_process, FakeQuantize)
    assert not hasattr(qat_model.bbox_head.loss_cls, "weight_fake_quant")
    for conv in qat_model.bbox_head.convs_pred:
        assert isinstance(conv.weight_fake_quant, FakeQuantize)
        assert getattr(conv, "activation_post_process", None) is None


def test_r97_a4_ready_made_qconfigs_are_values_and_callable() -> None:
    for qconfig in (default_calib_8bit_fake_quant_qconfig, default_qat_16bit_fake_quant_qconfig):
        assert qconfig() is qconfig


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r97_a5_one_float_model_is_prepared_twice_and_stays_as_it_is(front_end: str) -> None:
    model = configure(detector()) if front_end == "eager" else detector()
    before, expected = copy.deepcopy(model.state_dict()), model(EXAMPLE)

    def prepare(qconfig: Any) -> Any:
        return prepare_qat(model) if front_end == "eager" else prepare_qat_fx(model, {"": qconfig})

    calib_model = calibrate(prepare(default_calib_8bit_fake_quant_qconfig))
    train_detector(prepare(default_qat_8bit_fake_quant_qconfig), PLAN, head=model.bbox_head)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert equal(model(EXAMPLE), expected)
    shared = {id(p) for p in model.parameters()} & {id(p) for p in calib_model.parameters()}
    assert not shared


def freeze(model: Any) -> Any:
    """Overrides `train` of the backbone, as detection libraries do for frozen stages."""
    backbone_class = type(model.backbone)

    class Frozen(backbone_class):  # type: ignore[misc, valid-type]
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.conv1.eval()
            self.layer1.eval()
            for parameter in [*self.conv1.parameters(), *self.layer1.parameters()]:
                parameter.requires_grad = False
            return self

    model.backbone.__class__ = Frozen
    return model


def test_r97_a6_frozen_stages_keep_their_scales_and_weights_in_qat() -> None:
    model = configure(freeze(detector()))
    calibrated = calibrate(prepare_qat(model)).state_dict()
    qat_model = prepare_qat(model)
    qat_model.load_state_dict(calibrated)

    train_detector(qat_model, PLAN)

    frozen = ("backbone.conv1.", "backbone.layer1.", "backbone.quant.")
    moved = {
        name.rpartition(".activation_post_process.scale")[0]: not torch.equal(value, calibrated[name])
        for name, value in qat_model.state_dict().items()
        if name.endswith("activation_post_process.scale")
    }
    assert not any(has_moved for name, has_moved in moved.items() if f"{name}.".startswith(frozen))
    assert sum(moved.values()) > 20
    assert torch.equal(qat_model.state_dict()["backbone.conv1.conv.weight"], calibrated["backbone.conv1.conv.weight"])
    qat_model.train()
    assert not qat_model.backbone.conv1.training
    assert qat_model.backbone.layer2.training


def test_r97_a7_convert_takes_the_qat_state_in_eval_and_refuses_a_training_model() -> None:
    qat_model = copy.deepcopy(scenario_a()[1])
    with pytest.raises(StateError, match="eval"):
        convert(qat_model.train())

    assert equal(convert(qat_model.eval())(EXAMPLE), scenario_a()[2](EXAMPLE))


def test_r97_a8_plain_tensors_enter_and_leave() -> None:
    outputs = deploy_model()(EXAMPLE)

    assert all(type(m) is Tensor and m.dtype is torch.float32 for m in outputs)


def test_r97_a10_pytorchs_own_stubs_are_accepted() -> None:
    class Net(nn.Module):
        def __init__(self, quant: nn.Module, dequant: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.quant, self.conv, self.dequant = quant, nn.Conv2d(1, 4, 3), dequant

        def forward(self, x: Tensor) -> Any:
            return self.dequant(self.conv(self.quant(x)))

    theirs = Net(torch.quantization.QuantStub(), torch.quantization.DeQuantStub())
    ours = Net(QuantStub(), DeQuantStub())
    results = []
    for model in (theirs, ours):
        model.qconfig = default_calib_8bit_fake_quant_qconfig  # type: ignore[assignment]
        results.append(convert(calibrate(prepare_qat(model)))(EXAMPLE))

    assert torch.equal(*results)


class PlainMath(nn.Module):
    """Plain operators and functions between quantized values."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(scale=1 / 128), DeQuantStub()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(8, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.first(self.quant(x))
        y = torch.cat([y + y.flip(2), F.relu(y) * y], dim=1)
        y = F.interpolate(F.max_pool2d(self.second(y), 2), scale_factor=2.0)
        tokens = y.flatten(2).permute(0, 2, 1)
        self.kinds = {type(y), type(tokens), type(tokens[:, :4])}
        products = torch.matmul(tokens.transpose(1, 2), tokens)
        return self.dequant(products.mean(dim=-1))


def plain_math() -> Any:
    torch.manual_seed(2)
    model = PlainMath()
    model.qconfig = default_calib_8bit_fake_quant_qconfig
    return prepare_qat(model)


def test_r97_a11_plain_functions_get_modules_and_a_checkpoint_makes_them_again() -> None:
    calib_model = calibrate(plain_math())
    expected = {f"_generated_{f}_0" for f in ("add", "mul", "cat", "matmul", "mean")}

    assert {name for name, _ in calib_model.named_children() if name.startswith("_generated_")} == expected
    fresh = plain_math()
    fresh.load_state_dict(calib_model.state_dict())
    fresh.eval()
    set_fake_quantize(fresh, FakeQuantState.VALIDATION)
    assert torch.equal(fresh(IMAGES), calib_model(IMAGES))


def test_r97_a11_shape_only_functions_keep_the_scale() -> None:
    calib_model = calibrate(plain_math())
    quantized_model = convert(calib_model)

    reference, test = calib_model(IMAGES), quantized_model(IMAGES)

    assert quantized_model.kinds == {QTensor}
    assert sqnr_db(reference=[reference], test=[test]) > 30.0


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


class CutDetector(nn.Module):
    """The detector with a QuantStub for each level at the cut behind its backbone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.neck, self.bbox_head = model.backbone, model.neck, model.bbox_head
        self.cut = nn.ModuleList(QuantStub() for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        levels = tuple(stub(y) for stub, y in zip(self.cut, self.backbone(x), strict=True))
        return self.bbox_head(self.neck(levels))


class FirstSegment(nn.Module):
    """What one device runs; its outputs leave in float."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.backbone, self.dequant = whole.backbone, nn.ModuleList(DeQuantStub() for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        return tuple(stub(y) for stub, y in zip(self.dequant, self.backbone(x), strict=True))


class SecondSegment(nn.Module):
    """What the other device runs, from the stubs at the cut on."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.cut, self.neck, self.bbox_head = whole.cut, whole.neck, whole.bbox_head

    def forward(self, levels: Any) -> Any:
        return self.bbox_head(self.neck(tuple(stub(y) for stub, y in zip(self.cut, levels, strict=True))))


@pytest.mark.parametrize("stage", ["calib", "qat"])
def test_r36_two_segments_equal_the_whole_model(stage: str) -> None:
    whole = prepare_qat(configure(CutDetector(detector())))
    if stage == "calib":
        calibrate(whole)
    else:
        train_detector(whole, PLAN)
    quantized_model = convert(whole.eval())

    first, second = FirstSegment(quantized_model).eval(), SecondSegment(quantized_model).eval()
    between = first(IMAGES)

    assert all(type(y) is Tensor and y.dtype is torch.float32 for y in between)
    assert equal(second(between), quantized_model(IMAGES))
    assert all(float(stub.out_scale) != 1.0 for stub in quantized_model.cut)
