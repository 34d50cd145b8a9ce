"""The sample networks and mixed models: every integer of the converted model is what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.quant import (
    DeQuantStub,
    QuantStub,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    prepare_qat_fx,
    set_preserve_qat_mode,
)
from profiler.quant.deploy.probe import integer_kernels_are_exact, probe_kernels, unsigned_kernels_are_exact
from profiler.quant.requantize import set_requantization
from sample_models import digits, mobilenet_v2, pitfalls
from tests.quant.deploy.models import BATCHES, IMAGE, Net, converted
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.stages import calibrate
from tests.sample_models.test_mobilenet_v2 import eager_calib_model, fx_calib_model


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_mobilenet_v2_equals_onnx_runtime_op_by_op(front_end: str) -> None:
    model = convert(eager_calib_model()) if front_end == "eager" else convert_fx(fx_calib_model())

    exported = assert_equals_onnx(model, digits.normalise(digits.test_set()[0][:32]), num_codes=25)

    names = {mark.op_name for mark in exported.marks}
    assert {"backbone.quant", "backbone.conv1.conv", "backbone.layer1.0.depthwise.conv"} <= names
    kinds = [node.op_type for node in exported.proto.graph.node]
    assert kinds.count("QLinearConv") == 19
    assert kinds.count("ConvInteger") == 3  # the fused adds


@pytest.mark.parametrize("is_repaired", [False, True])
def test_pitfalls_equals_onnx_runtime_op_by_op(is_repaired: bool) -> None:
    prepared = pitfalls.calibrate(pitfalls.prepare(pitfalls.load(is_repaired)))

    assert_equals_onnx(convert(prepared), pitfalls.calibration_batches()[0][:16], num_codes=10)


def test_int16_mobilenet_v2_equals_onnx_runtime() -> None:
    prepared = prepare_qat_fx(mobilenet_v2.load(), {"": default_calib_16bit_fake_quant_qconfig})
    model = convert_fx(calibrate(prepared, mobilenet_v2.calibration_batches()[:1]))

    exported = assert_equals_onnx(model, digits.normalise(digits.test_set()[0][:8]), num_codes=25)

    assert {mark.qdtype for mark in exported.marks if mark.qdtype} >= {"qint16"}


def test_mixed_dtypes_equal_onnx_runtime() -> None:
    class Mixed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.fc.qconfig = default_calib_16bit_fake_quant_qconfig  # type: ignore[assignment]

    exported = assert_equals_onnx(converted(model=Mixed()), IMAGE)

    assert {mark.qdtype for mark in exported.marks if mark.qdtype} >= {"qint8", "qint16"}


class Boxes(nn.Module):
    """Detection head: float decoding behind the stubs, written in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Any]:
        x = self.dequant(self.conv(self.quant(image))).permute(0, 2, 3, 1)
        grid = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij"), -1)
        y = x.sigmoid()
        y[..., :2] = (y[..., :2] * 2 - 0.5 + grid) * 8
        y[..., 2:4] = (y[..., 2:4] * 2) ** 2
        best, index = y[..., 4:].max(-1)
        return {"boxes": (y[..., :4].flatten(1, 2), best), "labels": [index]}


def test_float_decoding_in_place_equals_onnx_runtime() -> None:
    exported = assert_equals_onnx(converted("eager", model=Boxes()), IMAGE)

    assert exported.output_names == ["boxes_0", "boxes_1", "labels_0"]


def test_preserved_op_runs_as_fake_quant_in_onnx_runtime() -> None:
    model = Net().eval()
    set_preserve_qat_mode(model, prefixes=("fc",))
    prepared = calibrate(prepare_qat_fx(model, {"": default_calib_8bit_fake_quant_qconfig}), BATCHES)

    exported = assert_equals_onnx(convert_fx(prepared), IMAGE, float_relative=1e-5)

    names = {node.name for node in exported.proto.graph.node}
    assert "fc/MatMul" in names
    assert "fc/MatMulInteger" not in names


@pytest.mark.parametrize("method", ["float32", "fixed_point"])
@pytest.mark.parametrize("ties", ["half_even", "half_up"])
def test_every_requantization_equals_onnx_runtime(method: str, ties: str) -> None:
    set_requantization(method, ties)
    try:
        model = converted()
    finally:
        set_requantization()

    exported = assert_equals_onnx(model, IMAGE, num_codes=6)

    has_fused = any(node.op_type == "QLinearConv" for node in exported.proto.graph.node)
    assert has_fused == (method == "float32" and ties == "half_even")


def test_probe_tells_of_every_kernel_and_finds_what_the_check_needs() -> None:
    probed = probe_kernels()

    assert set(probed) == {
        "QLinearConv", "QLinearConv uint8", "ConvInteger", "ConvInteger uint8", "MatMulInteger", "MatMulInteger uint8"
    }  # fmt: skip
    assert integer_kernels_are_exact() == all(v for k, v in probed.items() if k != "QLinearConv uint8")
    assert unsigned_kernels_are_exact() == all(v for k, v in probed.items() if "uint8" in k)
