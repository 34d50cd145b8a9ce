"""Trains the MobileNetV2 sample and writes its weights: `python -m sample_models.train_mobilenet_v2`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from sample_models import digits, mobilenet_v2
from sample_models.training import TrainingPlan, fit, save_weights

PLAN = TrainingPlan(epochs=60)
QAT_PLAN = TrainingPlan(epochs=3, learning_rate=5e-4, weight_decay=4e-5)


def train(plan: TrainingPlan = PLAN, num_images: int = digits.NUM_TRAIN) -> nn.Module:
    """A freshly trained network in eval mode; the same plan gives the same network on the same machine."""
    torch.manual_seed(plan.seed)
    model = mobilenet_v2.build()
    pixels, labels = digits.train_set()
    fit(model, digits.normalise(pixels[:num_images]), labels[:num_images], plan)
    return model


def train_qat(model: nn.Module, epochs: int) -> None:
    """Trains a prepared network for a few epochs at a small share of the float rate."""
    pixels, labels = digits.train_set()
    fit(model, digits.normalise(pixels), labels, replace(QAT_PLAN, epochs=epochs))


def main() -> None:
    """Trains, saves, and prints the held-out accuracy."""
    model = train()
    path = save_weights(model, mobilenet_v2.NAME)
    print(f"{path.name}: {mobilenet_v2.evaluate(model):.2f} % of {digits.NUM_TEST} held-out images")


if __name__ == "__main__":
    main()
