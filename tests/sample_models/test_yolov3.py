"""The detector: accurate in float, as accurate in int8, in both front ends."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from profiler.quant import DeQuantStub, QuantStub
from sample_models import yolov3
from sample_models.flows import OneByOne
from sample_models.train_yolov3 import DetectorPlan, train
from sample_models.training import WEIGHTS_DIR
from sample_models.yolov3_data import make_scenes
from sample_models.yolov3_network import YOLOV3
from tests.sample_models.quantizing import int8_stages

MAX_PTQ_LOSS = 2.0  # points of mAP@0.5


@functools.cache
def float_map() -> float:
    return yolov3.evaluate(yolov3.load())


def test_float_map_is_at_least_80_percent_on_the_held_out_canvases() -> None:
    assert float_map() >= 80.0


def test_weights_are_smaller_than_4_mb() -> None:
    assert (WEIGHTS_DIR / "yolov3.safetensors").stat().st_size < 4_000_000


def test_load_gives_eval_mode_a_camera_stub_and_one_dequant_stub_per_level() -> None:
    model = yolov3.load()

    assert not any(module.training for module in model.modules())
    assert [m.scale for m in model.modules() if isinstance(m, QuantStub)] == [1 / 128]
    assert sum(isinstance(m, DeQuantStub) for m in model.modules()) == 3


def test_maps_have_the_strides_32_16_8() -> None:
    maps = yolov3.build().eval()(torch.zeros(2, 1, 96, 96))

    assert [tuple(m.shape) for m in maps] == [(2, 45, 3, 3), (2, 45, 6, 6), (2, 45, 12, 12)]


def test_fuse_modules_keeps_the_function_and_leaves_no_norm() -> None:
    model, fused = yolov3.load(), yolov3.load()
    assert isinstance(fused, YOLOV3)
    for part in (fused.backbone, fused.neck, fused.bbox_head):
        part.fuse_modules()

    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    images = make_scenes(4, seed=8).images()
    with torch.no_grad():
        for reference, test in zip(model(images), fused(images), strict=True):
            torch.testing.assert_close(test, reference, rtol=0, atol=1e-3)


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_int8_ptq_loses_at_most_2_points(front_end: str) -> None:
    calib_model, quantized_model = int8_stages(yolov3.flow_sample(), front_end)

    assert float_map() - yolov3.evaluate(calib_model) <= MAX_PTQ_LOSS
    assert float_map() - yolov3.evaluate(quantized_model) <= MAX_PTQ_LOSS


def test_evaluate_does_not_depend_on_the_batch_size() -> None:
    model, scenes = yolov3.load(), make_scenes(12, seed=9)

    whole, parts = yolov3.evaluate(model, scenes), yolov3.evaluate(model, scenes, batch_size=5)

    assert whole == pytest.approx(parts, abs=0.5)
    assert whole > 60.0


def test_train_twice_gives_the_same_network() -> None:
    plan = DetectorPlan(epochs=1, pool=12, canvases=8, batch_size=4)

    first, second = train(plan), train(plan)

    assert not first.training
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)


def test_rate_rises_and_falls() -> None:
    plan = DetectorPlan(epochs=1)
    rates = [plan.rate_at(step / 100) for step in range(101)]

    assert rates[0] < 0.1
    assert rates[5] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)


def test_one_by_one_equals_the_batch() -> None:
    model, x = yolov3.build().eval(), torch.rand(3, 1, 96, 96)

    for one, whole in zip(OneByOne(model)(x), model(x), strict=True):
        torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-5)
