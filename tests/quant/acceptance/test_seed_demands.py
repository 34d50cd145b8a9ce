"""R97: what scenario A demands, A1 to A11, each on the article's network or a small one."""

from __future__ import annotations

import copy
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
    QTensor,
    QuantStub,
    check_model,
    compile_model,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_16bit_fake_quant_qconfig,
    fuse_known_modules,
    load_compiled,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
)
from sample_models.train_yolov3 import train_detector
from tests.quant.acceptance.article import (
    EXAMPLE,
    IMAGES,
    PLAN,
    calibrate,
    configure,
    deploy_model,
    detector,
    equal,
    scenario_a,
    sqnr_db,
)


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


@pytest.mark.parametrize(("inputs", "opt"), [(EXAMPLE, 0), ((EXAMPLE,), "O0"), ([EXAMPLE], 3), ([EXAMPLE], "O2")])
def test_r97_a9_check_and_compile_take_tensor_tuple_and_list(inputs: Any, opt: Any, tmp_path: Path) -> None:
    assert check_model(deploy_model(), inputs) == 0
    assert compile_model(deploy_model(), inputs, hbm=tmp_path / "model.onnx", opt=opt) == 0

    assert len(load_compiled(tmp_path / "model.onnx")(EXAMPLE)) == 3


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
