"""Losses of the detector: which place answers for which digit, and what its prediction should have been."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sample_models.yolov3_boxes import NUM_CLASSES, Places

_POSITIVE_IOU = 0.6  # of the box and the anchor laid on one another: the place answers for the digit
_IGNORED_IOU = 0.35  # from here on it may answer, and is not told to be silent
_SMOOTHING = 0.02


class SigmoidLoss(nn.Module):
    """Weighted sum of binary cross entropies of logits.

    Args:
        weight: factor of the loss.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.weight * F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")


class SquaredLoss(nn.Module):
    """Weighted sum of squared errors.

    Args:
        weight: factor of the loss.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, values: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.weight * (weights * (values - targets).square()).sum()


@dataclass(frozen=True)
class Targets:
    """What a batch's predictions should have been, for the K places that answer for a digit.

    Attributes:
        canvas: int64 `[K]`, row in the batch.
        place: int64 `[K]`, place on that canvas.
        center: `[K, 2]`, offset in the cell, 0..1.
        size: `[K, 2]`, log of box over anchor.
        weight: `[K, 1]`, 2 - share of the canvas: small boxes count more.
        classes: `[K, 10]`, one-hot, smoothed.
        confidence: `[N, P]`, 1 where a place answers.
        counts: `[N, P]`, 0 where the confidence is not judged.
    """

    canvas: torch.Tensor
    place: torch.Tensor
    center: torch.Tensor
    size: torch.Tensor
    weight: torch.Tensor
    classes: torch.Tensor
    confidence: torch.Tensor
    counts: torch.Tensor


def shape_iou(sizes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Intersection over union `[G, A]` of sizes `[G, 2]` and anchors `[A, 2]` laid on one another."""
    shared = torch.minimum(sizes[:, None], anchors[None]).prod(dim=-1)
    return shared / (sizes.prod(dim=-1)[:, None] + anchors.prod(dim=-1)[None] - shared)


def assign(boxes: list[torch.Tensor], labels: list[torch.Tensor], places: Places, canvas_size: int) -> Targets:
    """Finds the places that answer: of the cells that hold a box's centre, the best anchor and all that fit well.

    Args:
        boxes: per canvas `[M, 4]` in pixels.
        labels: per canvas `[M]`.
        places: the places of a canvas.
        canvas_size: side of the canvas in pixels.
    """
    canvas = torch.cat([torch.full((len(b),), i) for i, b in enumerate(boxes)])
    box, label = torch.cat(boxes), torch.cat(labels)
    center, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    offset = (center[:, None] - places.corners[None]) / places.strides[None]
    in_cell = ((offset >= 0) & (offset < 1)).all(dim=-1)
    fit = shape_iou(size, places.anchors) * in_cell
    answers = in_cell & ((fit >= _POSITIVE_IOU) | (fit >= fit.max(dim=1, keepdim=True).values))
    digit, place = torch.nonzero(answers, as_tuple=True)
    confidence = torch.zeros(len(boxes), len(places.corners))
    confidence[canvas[digit], place] = 1.0
    unsure_digit, unsure_place = torch.nonzero(fit >= _IGNORED_IOU, as_tuple=True)
    counts = torch.ones_like(confidence)
    counts[canvas[unsure_digit], unsure_place] = 0.0
    return Targets(
        canvas=canvas[digit],
        place=place,
        center=offset[digit, place],
        size=torch.log(size[digit] / places.anchors[place]),
        weight=2.0 - size[digit].prod(dim=-1, keepdim=True) / canvas_size**2,
        classes=F.one_hot(label[digit], NUM_CLASSES) * (1.0 - _SMOOTHING) + _SMOOTHING / NUM_CLASSES,
        confidence=confidence,
        counts=torch.maximum(counts, confidence),
    )
