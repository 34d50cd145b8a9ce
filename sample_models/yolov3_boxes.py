"""Boxes of the detector: anchors, overlap, and from prediction maps to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

NUM_CLASSES = 10
NUM_ATTRIBUTES = 5 + NUM_CLASSES  # x, y, width, height, confidence, classes
STRIDES = (32, 16, 8)
ANCHORS = (  # width and height in pixels, coarse level first: k-means over the boxes of 500 canvases, spread a little
    ((26.0, 38.0), (32.0, 46.0), (38.0, 54.0)),
    ((15.0, 25.0), (19.0, 28.0), (22.0, 33.0)),
    ((9.0, 16.0), (12.0, 19.0), (16.0, 21.0)),
)
MIN_SCORE = 0.05
MAX_NMS_IOU = 0.45
MAX_DETECTIONS = 50
_LARGEST_LOG_RATIO = 4.0  # of a box to its anchor; keeps exp finite for an untrained network


@dataclass(frozen=True)
class Detections:
    """What was found on one canvas, best score first.

    Attributes:
        boxes: `[K, 4]`, x0 y0 x1 y1 in pixels.
        scores: `[K]`, 0..1.
        labels: int64 `[K]`.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Places:
    """All places that can hold a box, level by level, anchor by anchor, row by row.

    Attributes:
        corners: `[P, 2]`, x and y of the cell's upper left corner in pixels.
        strides: `[P, 1]`, the cell's side in pixels.
        anchors: `[P, 2]`, width and height in pixels.
    """

    corners: torch.Tensor
    strides: torch.Tensor
    anchors: torch.Tensor


def flatten_maps(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps `[N, 3 * 15, H, W]` of all levels as one row per place, `[N, P, 15]`."""
    rows = [
        m.reshape(len(m), -1, NUM_ATTRIBUTES, *m.shape[2:]).permute(0, 1, 3, 4, 2).reshape(len(m), -1, NUM_ATTRIBUTES)
        for m in maps
    ]
    return torch.cat(rows, dim=1)


def find_places(canvas_size: int) -> Places:
    """The places of a square canvas, in the order of `flatten_maps`."""
    corners, strides, shapes = [], [], []
    for stride, anchors in zip(STRIDES, ANCHORS, strict=True):
        side = canvas_size // stride
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        cells = torch.stack([x, y], dim=-1).reshape(-1, 2).float() * stride
        corners.append(cells.repeat(len(anchors), 1))
        strides.append(torch.full((len(anchors) * len(cells), 1), float(stride)))
        shapes.append(torch.tensor(anchors).repeat_interleave(len(cells), dim=0))
    return Places(torch.cat(corners), torch.cat(strides), torch.cat(shapes))


def pairwise_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union `[K, M]` of `[K, 4]` and `[M, 4]`; two boxes without area: 0."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(dim=-1) for b in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None, :] - shared).clamp(min=1e-9)


def decode(maps: Sequence[torch.Tensor], canvas_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes `[N, P, 4]` in pixels and scores `[N, P, 10]` (confidence times class, 0..1) of all places."""
    rows, places = flatten_maps(maps), find_places(canvas_size)
    centers = places.corners + torch.sigmoid(rows[..., :2]) * places.strides
    halves = 0.5 * places.anchors * torch.exp(rows[..., 2:4].clamp(max=_LARGEST_LOG_RATIO))
    scores = torch.sigmoid(rows[..., 4:5]) * torch.sigmoid(rows[..., 5:])
    return torch.cat([centers - halves, centers + halves], dim=-1).clamp(0, canvas_size), scores


def suppress(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Greedy non-maximum suppression within each class: rows to keep, best score first."""
    order = torch.argsort(scores, descending=True, stable=True)
    hides = (pairwise_iou(boxes[order], boxes[order]) > MAX_NMS_IOU) & (labels[order][:, None] == labels[order][None])
    hidden = torch.zeros(len(order), dtype=torch.bool)
    kept = []
    for i in range(len(order)):
        if not hidden[i]:
            kept.append(int(order[i]))
            hidden |= hides[i]
    return kept


def find_detections(maps: Sequence[torch.Tensor], canvas_size: int) -> list[Detections]:
    """Detections of a batch: scores above 0.05, suppressed per class, at most 50 a canvas."""
    found = []
    for boxes, scores in zip(*decode(maps, canvas_size), strict=True):
        places, labels = torch.nonzero(scores > MIN_SCORE, as_tuple=True)
        boxes, scores = boxes[places], scores[places, labels]
        kept = suppress(boxes, scores, labels)[:MAX_DETECTIONS]
        found.append(Detections(boxes[kept], scores[kept], labels[kept]))
    return found
