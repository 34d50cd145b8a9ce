"""The sample networks: every integer of the converted model is what ONNX Runtime computes."""

from __future__ import annotations

import pytest

from profiler.quant import convert, convert_fx
from sample_models import digits
from tests.quant.onnx_check import assert_equals_onnx
from tests.sample_models.test_mobilenet_v2 import eager_calib_model, fx_calib_model


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_mobilenet_v2_equals_onnx_runtime_op_by_op(front_end: str) -> None:
    model = convert(eager_calib_model()) if front_end == "eager" else convert_fx(fx_calib_model())

    exported = assert_equals_onnx(model, digits.normalise(digits.test_set()[0][:32]), num_codes=25)

    names = {mark.op_name for mark in exported.marks}
    assert {"backbone.quant", "backbone.conv1.conv", "backbone.layer1.0.depthwise.conv"} <= names
