"""A detector: YOLOv3 on MobileNetV2, eager code, trained to find handwritten digits on 96x96 canvases.

The input is camera-like: whole multiples of 1/128 around 0, so the backbone's `QuantStub` has the fixed scale 1/128.
`python -m sample_models.yolov3 --flow eager` (or fx) takes it from float to the ONNX file and prints the mAP@0.5 of
every stage. The weights in `weights/` are made by `python -m sample_models.train_yolov3`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sample_models import yolov3_data
from sample_models.flows import Sample, main
from sample_models.training import load_weights
from sample_models.yolov3_boxes import STRIDES, find_detections
from sample_models.yolov3_data import CANVAS_SIZE, Scenes, held_out_scenes
from sample_models.yolov3_metric import mean_average_precision
from sample_models.yolov3_network import YOLOV3

if TYPE_CHECKING:
    from profiler import ProfileReport

NAME = "yolov3"


def build() -> nn.Module:
    """The network with fresh weights, in train mode."""
    return YOLOV3()


def load() -> nn.Module:
    """The trained network in eval mode."""
    return load_weights(build(), NAME)


def calibration_batches() -> list[torch.Tensor]:
    """Ten batches of 16 training canvases, normalised."""
    return yolov3_data.calibration_batches()


@torch.no_grad()
def evaluate(model: nn.Module, scenes: Scenes | None = None, *, batch_size: int = 50) -> float:
    """mAP@0.5 in percent on the 200 held-out canvases, or on the given ones.

    Args:
        model: gives prediction maps; put it in eval mode first.
        scenes: other canvases.
        batch_size: canvases per forward; the result does not depend on it.
    """
    scenes = held_out_scenes() if scenes is None else scenes
    detections = []
    for rows in torch.split(torch.arange(len(scenes)), batch_size):
        detections += find_detections(model(scenes.images(rows)), CANVAS_SIZE)
    return mean_average_precision(detections, scenes.boxes, scenes.labels)


class DeployModel(nn.Module):
    """What is deployed: the three parts of a converted detector, put together again."""

    def __init__(self, backbone: nn.Module, neck: nn.Module, bbox_head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck, self.bbox_head = backbone, neck, bbox_head

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps: tuple[torch.Tensor, ...] = self.bbox_head(self.neck(self.backbone(x)))
        return maps


def profile(out_dir: str | Path | None = None, **kwargs: Any) -> ProfileReport:
    """Profiles the trained network from float to int8, as a user would."""
    from profiler import model_profiler

    batches = yolov3_data.calibration_batches(batch_size=4)  # enough to calibrate, and a minute instead of several
    report: ProfileReport = model_profiler(load(), batches, evaluate=evaluate, out_dir=out_dir, **kwargs)
    return report


def flow_sample() -> Sample:
    """What the flows need to know of the detector."""
    from sample_models.train_yolov3 import train_qat  # the trainer imports this module

    return Sample(
        name=NAME,
        metric="mAP@0.5 in percent on 200 held-out canvases",
        load=load,
        calibration_batches=calibration_batches,
        evaluate=evaluate,
        train=train_qat,
        outputs=tuple(f"bbox_head.convs_pred.{i}" for i in range(len(STRIDES))),
        parts=("backbone", "neck", "bbox_head"),
        losses=tuple(f"bbox_head.{name}" for name in ("loss_cls", "loss_conf", "loss_xy", "loss_wh")),
        deploy=lambda model: DeployModel(model.backbone, model.neck, model.bbox_head),  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    main(flow_sample(), qat_epochs=2)
