"""From true boxes to targets and back: what the loss asks for is what decoding gives."""

from __future__ import annotations

import pytest
import torch

from sample_models.yolov3_boxes import (
    ANCHORS,
    NUM_ATTRIBUTES,
    STRIDES,
    decode,
    find_detections,
    find_places,
    flatten_maps,
    pairwise_iou,
    suppress,
)
from sample_models.yolov3_data import CANVAS_SIZE, make_scenes
from sample_models.yolov3_loss import SigmoidLoss, SquaredLoss, assign
from sample_models.yolov3_network import YOLOV3Head

NUM_PLACES = 3 * sum((CANVAS_SIZE // stride) ** 2 for stride in STRIDES)


def maps_of(rows: torch.Tensor) -> list[torch.Tensor]:
    """Inverse of `flatten_maps`."""
    maps, start = [], 0
    for stride in STRIDES:
        side = CANVAS_SIZE // stride
        part = rows[:, start : start + 3 * side * side]
        maps.append(part.reshape(-1, 3, side, side, NUM_ATTRIBUTES).permute(0, 1, 4, 2, 3).flatten(1, 2))
        start += 3 * side * side
    return maps


def perfect_maps(boxes: list[torch.Tensor], labels: list[torch.Tensor]) -> list[torch.Tensor]:
    """The maps of a network that knows the answer."""
    t = assign(boxes, labels, find_places(CANVAS_SIZE), CANVAS_SIZE)
    rows = torch.zeros(len(boxes), NUM_PLACES, NUM_ATTRIBUTES)
    rows[..., 4] = torch.where(t.confidence > 0, 12.0, -12.0)
    rows[t.canvas, t.place, :2] = torch.logit(t.center.clamp(1e-4, 1 - 1e-4))
    rows[t.canvas, t.place, 2:4] = t.size
    rows[t.canvas, t.place, 5:] = torch.where(t.classes > 0.5, 12.0, -12.0)
    return maps_of(rows)


def test_pairwise_iou_by_hand() -> None:
    square = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    others = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [20.0, 0.0, 30.0, 10.0], [3.0, 3.0, 3.0, 3.0]]
    )

    torch.testing.assert_close(pairwise_iou(square, others), torch.tensor([[1.0, 1 / 3, 0.0, 0.0]]))


def test_places_lie_level_by_level_in_the_order_of_the_maps() -> None:
    places = find_places(CANVAS_SIZE)
    maps = []
    for stride, anchors in zip(STRIDES, ANCHORS, strict=True):
        side = CANVAS_SIZE // stride
        m = torch.zeros(1, len(anchors), NUM_ATTRIBUTES, side, side)
        m[0, :, 0] = torch.arange(side) * float(stride)
        m[0, :, 1] = torch.arange(side)[:, None] * float(stride)
        m[0, :, 2:4] = torch.tensor(anchors)[:, :, None, None]
        maps.append(m.flatten(1, 2))
    rows = flatten_maps(maps)[0]

    assert len(places.corners) == NUM_PLACES
    assert torch.equal(rows[:, :2], places.corners)
    assert torch.equal(rows[:, 2:4], places.anchors)


def test_every_digit_has_a_place_that_answers_in_the_cell_of_its_centre() -> None:
    scenes, places = make_scenes(20, seed=5), find_places(CANVAS_SIZE)
    for boxes, labels in zip(scenes.boxes, scenes.labels, strict=True):
        for box, label in zip(boxes, labels, strict=True):
            t = assign([box[None]], [label[None]], places, CANVAS_SIZE)

            assert len(t.place) >= 1
            center = places.corners[t.place] + t.center * places.strides[t.place]
            torch.testing.assert_close(center, ((box[:2] + box[2:]) / 2).expand_as(center))
            torch.testing.assert_close(t.size.exp() * places.anchors[t.place], (box[2:] - box[:2]).expand_as(t.size))
            assert (t.classes.argmax(dim=1) == label).all()
            assert torch.equal(torch.nonzero(t.confidence[0])[:, 0], t.place)
            assert (t.counts[0, t.place] == 1).all()


def test_decoding_the_targets_gives_the_true_boxes() -> None:
    scenes = make_scenes(20, seed=6)

    for found, boxes, labels in zip(
        find_detections(perfect_maps(scenes.boxes, scenes.labels), CANVAS_SIZE),
        scenes.boxes,
        scenes.labels,
        strict=True,
    ):
        iou = pairwise_iou(found.boxes, boxes)
        assert len(found.boxes) == len(boxes)
        assert iou.max(dim=0).values.min() > 0.98
        assert torch.equal(labels[iou.argmax(dim=1)], found.labels)


def test_loss_of_the_perfect_maps_is_far_below_that_of_silence() -> None:
    scenes, head = make_scenes(8, seed=7), YOLOV3Head(8)
    silent = maps_of(torch.zeros(8, NUM_PLACES, NUM_ATTRIBUTES))

    perfect = head.loss(tuple(perfect_maps(scenes.boxes, scenes.labels)), scenes.boxes, scenes.labels)
    nothing = head.loss(tuple(silent), scenes.boxes, scenes.labels)

    assert list(perfect) == ["loss_cls", "loss_conf", "loss_xy", "loss_wh"]
    assert perfect["loss_wh"] == 0
    assert perfect["loss_conf"] < 0.01 * nothing["loss_conf"]
    assert perfect["loss_cls"] < 0.5 * nothing["loss_cls"]  # the smoothed labels cost a little
    assert perfect["loss_xy"] < nothing["loss_xy"]


def test_decode_of_an_untrained_network_is_finite() -> None:
    boxes, scores = decode(maps_of(torch.full((1, NUM_PLACES, NUM_ATTRIBUTES), 1e4)), CANVAS_SIZE)

    assert boxes.isfinite().all()
    assert scores.max() == 1


def test_suppress_keeps_the_best_of_each_class() -> None:
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [1.0, 0.0, 11.0, 10.0], [40.0, 40.0, 50.0, 50.0]]
    )
    scores, labels = torch.tensor([0.5, 0.9, 0.4, 0.1]), torch.tensor([1, 1, 2, 1])

    assert suppress(boxes, scores, labels) == [1, 2, 3]


def test_losses_by_hand() -> None:
    ones = torch.ones(2)

    assert float(SigmoidLoss(2.0)(torch.zeros(2), torch.tensor([0.0, 1.0]), ones)) == pytest.approx(
        4 * 0.693147, rel=1e-5
    )
    assert float(SquaredLoss(0.5)(torch.tensor([1.0, 3.0]), torch.zeros(2), torch.tensor([1.0, 2.0]))) == 9.5
