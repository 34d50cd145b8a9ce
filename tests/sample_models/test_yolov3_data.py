"""The canvases: repeatable, camera-like, boxes that fit the ink, held-out digits that were never trained on."""

from __future__ import annotations

import torch

from sample_models import digits
from sample_models.yolov3_boxes import pairwise_iou
from sample_models.yolov3_data import CANVAS_SIZE, NUM_TEST, calibration_batches, held_out_scenes, make_scenes

SCENES = make_scenes(24, seed=3)


def test_make_scenes_twice_gives_the_same_canvases() -> None:
    again = make_scenes(24, seed=3)

    assert torch.equal(again.pixels, SCENES.pixels)
    assert all(map(torch.equal, again.boxes, SCENES.boxes))
    assert all(map(torch.equal, again.labels, SCENES.labels))
    assert not torch.equal(make_scenes(24, seed=4).pixels, SCENES.pixels)


def test_images_are_multiples_of_the_stub_scale_in_its_range() -> None:
    images = SCENES.images()

    assert images.shape == (24, 1, CANVAS_SIZE, CANVAS_SIZE)
    assert torch.equal(images * 128, torch.round(images * 128))
    assert images.min() >= -1
    assert images.max() < 1


def test_images_of_chosen_rows_are_those_rows() -> None:
    rows = torch.tensor([5, 2])

    assert torch.equal(SCENES.images(rows), SCENES.images()[rows])


def test_boxes_lie_on_the_canvas_and_hardly_overlap() -> None:
    for boxes, labels in zip(SCENES.boxes, SCENES.labels, strict=True):
        assert 1 <= len(boxes) == len(labels) <= 6
        assert boxes.min() >= 0
        assert boxes.max() <= CANVAS_SIZE
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 4
        others = pairwise_iou(boxes, boxes) - torch.eye(len(boxes))
        assert others.max() <= 0.06


def test_digits_are_brighter_than_what_surrounds_them() -> None:
    """A box that were shifted off its digit would even the two out."""
    inside, outside = [], []
    for canvas, boxes in zip(SCENES.pixels, SCENES.boxes, strict=True):
        covered = torch.zeros(CANVAS_SIZE, CANVAS_SIZE, dtype=torch.bool)
        for x0, y0, x1, y1 in boxes.int().tolist():
            covered[y0:y1, x0:x1] = True
        inside.append(canvas[0][covered].float().mean())
        outside.append(canvas[0][~covered].float().mean())

    assert float(torch.stack(inside).mean()) > float(torch.stack(outside).mean()) + 40


def test_training_and_held_out_digits_are_disjoint() -> None:
    train, held_out = digits.split_indices()

    assert not set(train.tolist()) & set(held_out.tolist())
    for rows, is_train in ((train, True), (held_out, False)):
        images, labels = digits.small_images(is_train)
        assert len(images) == len(labels) == len(rows)
        assert float(images.max()) == 1.0


def test_held_out_scenes_hold_every_class_many_times() -> None:
    scenes = held_out_scenes()

    assert len(scenes) == NUM_TEST == 200
    assert torch.bincount(torch.cat(scenes.labels), minlength=10).min() >= 40


def test_calibration_batches_are_training_canvases() -> None:
    batches = calibration_batches(num_batches=2, batch_size=3)

    assert [tuple(batch.shape) for batch in batches] == [(3, 1, CANVAS_SIZE, CANVAS_SIZE)] * 2
