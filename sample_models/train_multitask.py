"""Trains the multi-task sample and writes its weights: `python -m sample_models.train_multitask`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from sample_models import multitask
from sample_models.multitask_data import digit_canvases, quadrant_canvases
from sample_models.training import save_weights


@dataclass(frozen=True)
class MultiTaskPlan:
    """How long and how hard to train.

    Attributes:
        epochs: number of epochs.
        canvases: canvases of each task in an epoch; each task's are drawn once.
        batch_size: canvases of each task in a step.
        learning_rate: peak of the one-cycle rate.
        weight_decay: of AdamW.
        seed: of weights, canvases and their order.
    """

    epochs: int
    canvases: int = 2800
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    seed: int = 0


PLAN = MultiTaskPlan(epochs=20)
QAT_PLAN = replace(PLAN, epochs=2, learning_rate=2e-4, weight_decay=0.0)


def train(plan: MultiTaskPlan = PLAN) -> nn.Module:
    """A freshly trained network in eval mode; the same plan gives the same network on the same machine."""
    torch.manual_seed(plan.seed)
    model = multitask.build()
    fit(model, plan)
    return model


def train_qat(model: nn.Module, epochs: int) -> None:
    """Trains a prepared network for a few epochs at a small share of the float rate."""
    fit(model, replace(QAT_PLAN, epochs=epochs))


def fit(model: nn.Module, plan: MultiTaskPlan) -> None:
    """Trains `model` in place and leaves it in eval mode.

    A step sees as many canvases of each task; each head learns from those of its own task alone.
    """
    rng = torch.Generator().manual_seed(plan.seed)
    first, second = (make(plan.canvases, seed=plan.seed + 1) for make in (digit_canvases, quadrant_canvases))
    num_steps = plan.epochs * -(-plan.canvases // plan.batch_size)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=plan.learning_rate, weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=plan.learning_rate, total_steps=num_steps)
    model.train()
    for _ in range(plan.epochs):
        orders = [torch.split(torch.randperm(plan.canvases, generator=rng), plan.batch_size) for _ in range(2)]
        for rows1, rows2 in zip(*orders, strict=True):
            digit, quadrant = model(torch.cat([first.images(rows1), second.images(rows2)]))
            loss = F.cross_entropy(digit[: len(rows1)], first.labels[rows1], label_smoothing=0.05)
            loss = loss + F.cross_entropy(quadrant[len(rows1) :], second.labels[rows2], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


def main() -> None:
    """Trains, saves, and prints the held-out accuracies."""
    torch.set_num_threads(1)  # the network is so small that threads cost more than they save
    model = train()
    path = save_weights(model, multitask.NAME)
    digit, quadrant = multitask.accuracies(model)
    print(f"{path.name}: digit {digit:.2f} %, quadrant {quadrant:.2f} % of 397 held-out canvases each")


if __name__ == "__main__":
    main()
