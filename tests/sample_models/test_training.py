"""The training scripts run and give the same network twice."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import sample_models
from sample_models import digits, mobilenet_v2, train_mobilenet_v2, train_pitfalls, training
from sample_models.training import TrainingPlan

PLAN = TrainingPlan(epochs=1, learning_rate=0.05)
NUM_IMAGES = 256


@pytest.mark.parametrize("train", [train_mobilenet_v2.train, train_pitfalls.train], ids=["mobilenet_v2", "pitfalls"])
def test_train_twice_gives_the_same_network(train: Callable[[TrainingPlan, int], nn.Module]) -> None:
    first, second = train(PLAN, NUM_IMAGES), train(PLAN, NUM_IMAGES)

    assert not first.training
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)


def test_train_learns() -> None:
    model = train_mobilenet_v2.train(TrainingPlan(epochs=2))

    assert mobilenet_v2.evaluate(model) > 80.0


def test_plant_keeps_the_float_function() -> None:
    model = train_pitfalls.train(TrainingPlan(epochs=3))  # long enough for the quiet channel to be quiet
    test_pixels = digits.test_set()[0]

    with torch.no_grad():
        reference = model(digits.normalise(test_pixels))
        train_pitfalls.plant(model)
        torch.testing.assert_close(model(test_pixels), reference, rtol=0, atol=1e-4)


def test_save_and_load_weights_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WEIGHTS_DIR", tmp_path)
    model = mobilenet_v2.build()

    path = training.save_weights(model, "net")
    loaded = training.load_weights(mobilenet_v2.build(), "net")

    assert path.is_file()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_augment_keeps_shape_and_range() -> None:
    images = digits.normalise(digits.test_set()[0][:16])

    augmented = training.augment(images, PLAN, torch.Generator().manual_seed(1))

    assert augmented.shape == images.shape
    assert augmented.min() >= -1
    assert augmented.max() < 1
    assert not torch.equal(augmented, images)


def test_samples_name_modules_with_the_four_functions() -> None:
    for path in sample_models.SAMPLES.values():
        module = importlib.import_module(path)
        assert all(callable(getattr(module, name)) for name in ("load", "calibration_batches", "evaluate", "profile"))
