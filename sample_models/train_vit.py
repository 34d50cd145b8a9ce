"""Trains the vision transformer sample and writes its weights: `python -m sample_models.train_vit`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from sample_models import digits, vit
from sample_models.training import TrainingPlan, fit, save_weights

PLAN = TrainingPlan(epochs=100, learning_rate=3e-3, weight_decay=0.05, optimizer="adamw")
QAT_PLAN = replace(PLAN, epochs=3, learning_rate=1e-4)


def train(plan: TrainingPlan = PLAN, num_images: int = digits.NUM_TRAIN) -> nn.Module:
    """A freshly trained network in eval mode; the same plan gives the same network on the same machine."""
    torch.manual_seed(plan.seed)
    model = vit.build()
    pixels, labels = digits.train_set()
    fit(model, digits.normalise(pixels[:num_images]), labels[:num_images], plan)
    return model


def train_qat(model: nn.Module, epochs: int) -> None:
    """Trains a prepared network for a few epochs at a small share of the float rate."""
    pixels, labels = digits.train_set()
    fit(model, digits.normalise(pixels), labels, replace(QAT_PLAN, epochs=epochs))


def main() -> None:
    """Trains, saves, and prints the held-out accuracy."""
    torch.set_num_threads(1)  # the network is so small that threads cost more than they save
    model = train()
    path = save_weights(model, vit.NAME)
    print(f"{path.name}: {vit.evaluate(model):.2f} % of {digits.NUM_TEST} held-out images")


if __name__ == "__main__":
    main()
