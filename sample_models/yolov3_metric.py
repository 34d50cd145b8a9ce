"""mAP@0.5: mean over the classes of the area under the precision-recall curve, boxes matched at IoU 0.5."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sample_models.yolov3_boxes import Detections, pairwise_iou

MATCH_IOU = 0.5


def match(found: torch.Tensor, truth: torch.Tensor) -> list[bool]:
    """Which detections of one class on one canvas are right.

    Args:
        found: boxes `[K, 4]`, best score first. Each takes the free true box that it overlaps most, from IoU 0.5 on.
        truth: boxes `[M, 4]`; each can be taken once.

    Returns:
        K flags.
    """
    iou = pairwise_iou(found, truth)
    flags = []
    for row in iou:
        best = int(row.argmax()) if len(row) else -1
        is_right = best >= 0 and float(row[best]) >= MATCH_IOU
        if is_right:
            iou[:, best] = 0.0
        flags.append(is_right)
    return flags


def average_precision(scores: Sequence[float], is_right: Sequence[bool], num_truth: int) -> float:
    """Area under the precision-recall curve, all points, precision made non-increasing.

    Args:
        scores: of all detections of one class on all canvases, in any order.
        is_right: whether each was matched.
        num_truth: true boxes of the class, at least 1.

    Returns:
        0..1; 0 without detections.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    precisions, recalls, num_right = [], [], 0
    for rank, i in enumerate(order, start=1):
        num_right += is_right[i]
        precisions.append(num_right / rank)
        recalls.append(num_right / num_truth)
    area, best = 0.0, 0.0
    for k in reversed(range(len(order))):
        best = max(best, precisions[k])
        area += best * (recalls[k] - (recalls[k - 1] if k else 0.0))
    return area


def mean_average_precision(
    detections: Sequence[Detections], boxes: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
) -> float:
    """mAP@0.5 in percent (0..100) over the classes that occur in `labels`.

    Args:
        detections: one per canvas.
        boxes: true boxes per canvas, `[M, 4]`.
        labels: their classes, `[M]`.
    """
    precisions = []
    for label in torch.unique(torch.cat(list(labels))).tolist():
        scores: list[float] = []
        is_right: list[bool] = []
        for found, truth, classes in zip(detections, boxes, labels, strict=True):
            of_class = found.labels == label
            scores += found.scores[of_class].tolist()
            is_right += match(found.boxes[of_class], truth[classes == label])
        num_truth = sum(int((classes == label).sum()) for classes in labels)
        precisions.append(average_precision(scores, is_right, num_truth))
    return 100.0 * sum(precisions) / len(precisions)
