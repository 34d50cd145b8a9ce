"""The samples from float to ONNX: every integer equal in ONNX Runtime; the whole flows, with QAT, are heavy."""

from __future__ import annotations

from pathlib import Path

import pytest

from sample_models import mobilenet_v2, yolov3
from sample_models.flows import FLOWS, Sample
from tests.quant.onnx_check import assert_equals_onnx
from tests.sample_models.quantizing import int8_stages

SAMPLES = {"yolov3": yolov3.flow_sample(), "mobilenet_v2": mobilenet_v2.flow_sample()}
LOSSES = {"yolov3": (2.0, 1.0), "mobilenet_v2": (0.5, 0.25)}  # points that PTQ and QAT may lose


@pytest.mark.parametrize("front_end", sorted(FLOWS))
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_integer_of_the_sample_equals_onnx_runtime(name: str, front_end: str) -> None:
    sample: Sample = SAMPLES[name]
    quantized_model = int8_stages(sample, front_end)[1].eval()
    deployed = sample.deploy(quantized_model) if front_end == "eager" else quantized_model

    assert_equals_onnx(deployed.eval(), sample.calibration_batches()[0][:2], num_codes=25)


@pytest.mark.heavy
@pytest.mark.parametrize("flow", sorted(FLOWS))
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_whole_flow_reaches_its_accuracies(name: str, flow: str, tmp_path: Path) -> None:
    values: dict[str, float] = {}
    ptq_loss, qat_loss = LOSSES[name]

    FLOWS[flow](SAMPLES[name], 2, lambda stage, value, _: values.update({stage: value}), tmp_path / "model.onnx")

    assert values["float"] - values["calib"] <= ptq_loss
    assert values["float"] - values["calib, quantized"] <= ptq_loss
    assert values["float"] - values["qat"] <= qat_loss
    assert values["float"] - values["quantized"] <= qat_loss
    assert values["onnx"] == pytest.approx(values["quantized"], abs=0.05)
