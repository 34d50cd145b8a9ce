"""Trains the YOLOv3 sample and writes its weights: `python -m sample_models.train_yolov3`.

It takes about a quarter of an hour on one core and uses no more: sums are then added in the same order each time, and
the same machine gives the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sample_models import yolov3
from sample_models.training import save_weights
from sample_models.yolov3_data import Scenes, make_scenes


@dataclass(frozen=True)
class DetectorPlan:
    """How long and how hard to train a detector.

    Attributes:
        epochs: number of epochs.
        pool: canvases to draw from.
        canvases: canvases in an epoch.
        batch_size: canvases in a step.
        learning_rate: peak of the rate: a short linear rise, then half a cosine down to a hundredth.
        warmup: share of the steps that the rise takes.
        weight_decay: of AdamW.
        max_gradient: the gradient's norm is cut to this.
        seed: of the canvases and their order.
    """

    epochs: int
    pool: int = 6000
    canvases: int = 2000
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.02
    max_gradient: float = 20.0
    seed: int = 0

    def rate_at(self, progress: float) -> float:
        """Share of the peak rate after `progress` (0..1) of the steps."""
        if progress < self.warmup:
            return (progress + 1e-3) / (self.warmup + 1e-3)
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * (progress - self.warmup) / (1.0 - self.warmup)))


PLAN = DetectorPlan(epochs=26)
QAT_PLAN = DetectorPlan(epochs=2, pool=1500, canvases=1500, learning_rate=2e-4, weight_decay=0.0)
Log = Callable[[int, float], None]


def train_detector(
    model: nn.Module, plan: DetectorPlan, log: Log | None = None, head: nn.Module | None = None
) -> nn.Module:
    """Trains a detector in place, float or prepared for QAT alike, and leaves it in eval mode.

    Args:
        model: gives prediction maps.
        plan: epochs, rates and seed.
        log: called after each epoch with its number and mean loss.
        head: has `loss`; the model's own `bbox_head`, or that of the float model where a traced one has lost it.
    """
    head = model.bbox_head if head is None else head  # type: ignore[assignment]
    steps = -(-plan.canvases // plan.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.rate_at(step / (plan.epochs * steps)))
    scenes = make_scenes(plan.pool, seed=plan.seed)
    rng = torch.Generator().manual_seed(plan.seed)
    for epoch in range(plan.epochs):
        model.train()
        total = 0.0
        order = torch.randperm(len(scenes), generator=rng)[: plan.canvases]
        for rows in torch.split(order, plan.batch_size):
            loss = batch_loss(model, head, scenes, rows)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), plan.max_gradient)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        if log is not None:
            log(epoch, total / steps)
    return model.eval()


def train_qat(model: nn.Module, epochs: int) -> nn.Module:
    """Trains a prepared detector for a few short epochs on a quarter of the canvases."""
    return train_detector(model, replace(QAT_PLAN, epochs=epochs), head=yolov3.build().bbox_head)  # type: ignore[arg-type]


def batch_loss(model: nn.Module, head: Any, scenes: Scenes, rows: torch.Tensor) -> torch.Tensor:
    """Sum of the four losses on the chosen canvases."""
    maps = model(scenes.images(rows))
    picked = rows.tolist()
    losses = head.loss(maps, [scenes.boxes[i] for i in picked], [scenes.labels[i] for i in picked])
    return torch.stack(list(losses.values())).sum()


def train(plan: DetectorPlan = PLAN, log: Log | None = None) -> nn.Module:
    """A freshly trained network in eval mode; the same plan gives the same network on the same machine and threads."""
    torch.manual_seed(plan.seed)
    return train_detector(yolov3.build(), plan, log)


def main() -> None:
    """Trains, saves, and prints the mAP@0.5 on the held-out canvases."""
    torch.set_num_threads(1)
    start = time.monotonic()
    model = train(log=lambda epoch, loss: print(f"epoch {epoch}: loss {loss:.2f}, {time.monotonic() - start:.0f} s"))
    path = save_weights(model, yolov3.NAME)
    print(f"{path.name}: mAP@0.5 {yolov3.evaluate(model):.2f} % on the held-out canvases")


if __name__ == "__main__":
    main()
