"""R36: a network cut in two behind a QuantStub equals the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.quant import (
    DeQuantStub,
    QuantStub,
    compile_model,
    convert,
    load_compiled,
    prepare_qat,
)
from sample_models.train_yolov3 import train_detector
from tests.quant.acceptance.article import (
    IMAGES,
    PLAN,
    calibrate,
    configure,
    detector,
    equal,
)


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


def test_r36_files_of_both_segments_equal_the_file_of_the_whole_bit_for_bit(tmp_path: Path) -> None:
    whole = prepare_qat(configure(CutDetector(detector())))
    calibrate(whole)
    quantized_model = convert(whole.eval())
    first, second = FirstSegment(quantized_model).eval(), SecondSegment(quantized_model).eval()
    between = first(IMAGES)
    assert equal(second(between), quantized_model(IMAGES))

    compiled = []
    for name, part, given in (("first", first, [IMAGES]), ("second", second, [between])):
        assert compile_model(part, given, tmp_path / f"{name}.onnx") == 0
        compiled.append(load_compiled(tmp_path / f"{name}.onnx"))
    assert compile_model(quantized_model, [IMAGES], tmp_path / "whole.onnx") == 0
    sent = compiled[0](IMAGES)
    assert equal(sent, between)
    assert equal(compiled[1](sent), load_compiled(tmp_path / "whole.onnx")(IMAGES))
    assert equal(compiled[1](sent), quantized_model(IMAGES))


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
