"""The data of the samples: the split is fixed and disjoint, and inputs are what a camera gives."""

from __future__ import annotations

import hashlib

import torch

from sample_models import digits

SPLIT_SHA256 = "402112cd059b2972b37c994639a3d8d012df7fc90d3498190c6defca406f3342"


def test_split_parts_are_disjoint_and_complete() -> None:
    train, test = digits.split_indices()

    assert (len(train), len(test)) == (digits.NUM_TRAIN, digits.NUM_TEST) == (1400, 397)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(1797))


def test_split_is_the_same_everywhere() -> None:
    rows = ",".join(str(row) for row in digits.split_indices()[1].tolist())

    assert hashlib.sha256(rows.encode()).hexdigest() == SPLIT_SHA256


def test_split_holds_every_class_in_its_share() -> None:
    counts = digits.test_set()[1].bincount(minlength=digits.NUM_CLASSES)

    assert counts.min() >= 38
    assert counts.max() <= 41


def test_pixels_are_whole_numbers_up_to_255() -> None:
    pixels = digits.test_set()[0]

    assert pixels.shape == (397, 1, 32, 32)
    assert torch.equal(pixels, pixels.round())
    assert (float(pixels.min()), float(pixels.max())) == (0.0, 255.0)


def test_normalise_gives_multiples_of_a_128th_on_both_sides_of_zero() -> None:
    images = digits.normalise(digits.test_set()[0])

    assert torch.equal(images * 128, (images * 128).round())
    assert images.min() == -1
    assert 0.9 < images.max() < 1


def test_calibration_batches_come_from_the_training_part() -> None:
    batches = digits.calibration_batches()

    assert [tuple(batch.shape) for batch in batches] == [(32, 1, 32, 32)] * 10
    assert torch.equal(torch.cat(batches), digits.normalise(digits.train_set()[0][:320]))


def test_accuracy_of_a_constant_answer_is_the_share_of_that_class() -> None:
    labels = digits.test_set()[1]

    accuracy = digits.accuracy(lambda x: torch.eye(10)[3].expand(len(x), 10), batch_size=100)

    assert accuracy == 100.0 * int((labels == 3).sum()) / 397
