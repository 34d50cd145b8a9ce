"""The article's network, narrow, and what scenario A makes of it."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import nn

from profiler.quant import (
    FakeQuantState,
    March,
    convert,
    get_default_qat_out_qconfig,
    get_default_qat_qconfig,
    prepare_qat,
    set_fake_quantize,
    set_march,
)
from sample_models.train_yolov3 import DetectorPlan, train_detector
from sample_models.yolov3 import DeployModel
from sample_models.yolov3_data import make_scenes
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
