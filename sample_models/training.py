"""The seeded training loop that both samples use: cross entropy, SGD with a one-cycle rate, small shifts and zooms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS_DIR = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how hard to train. `max_zoom` and `max_shift` are fractions of the image's half width.

    `optimizer` is "sgd" (with momentum) or "adamw".
    """

    epochs: int
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    batch_size: int = 64
    seed: int = 0
    max_zoom: float = 0.12
    max_shift: float = 0.12
    optimizer: str = "sgd"


Penalty = Callable[[nn.Module], torch.Tensor]


def fit(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, plan: TrainingPlan, penalty: Penalty | None = None
) -> None:
    """Trains `model` in place and leaves it in eval mode.

    Args:
        model: gives logits `[N, 10]`.
        images: model inputs `[N, 1, H, W]`, already preprocessed.
        labels: classes `[N]`.
        plan: epochs, rates and the seed of order and augmentation.
        penalty: an extra loss, called after each forward.
    """
    rng = torch.Generator().manual_seed(plan.seed)
    num_steps = plan.epochs * -(-len(images) // plan.batch_size)
    optimizer = make_optimizer(model, plan)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=plan.learning_rate, total_steps=num_steps)
    model.train()
    for _ in range(plan.epochs):
        for rows in torch.split(torch.randperm(len(images), generator=rng), plan.batch_size):
            loss = F.cross_entropy(model(augment(images[rows], plan, rng)), labels[rows], label_smoothing=0.05)
            if penalty is not None:
                loss = loss + penalty(model)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


def make_optimizer(model: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    """The plan's optimizer of all parameters."""
    settings: dict[str, Any] = {"lr": plan.learning_rate, "weight_decay": plan.weight_decay}
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **settings)
    return torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, **settings)


def augment(images: torch.Tensor, plan: TrainingPlan, rng: torch.Generator) -> torch.Tensor:
    """Each image zoomed and shifted a little, with its border repeated."""
    num = len(images)
    zoom = 1.0 + plan.max_zoom * (2.0 * torch.rand(num, generator=rng) - 1.0)
    theta = torch.zeros(num, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = plan.max_shift * (2.0 * torch.rand(num, 2, generator=rng) - 1.0)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def save_weights(model: nn.Module, name: str) -> Path:
    """Writes `weights/<name>.safetensors` and gives its path."""
    path = WEIGHTS_DIR / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def load_state(name: str) -> dict[str, torch.Tensor]:
    """Reads `weights/<name>.safetensors` as a state dict."""
    return load_file(WEIGHTS_DIR / f"{name}.safetensors")


def load_weights(model: nn.Module, name: str) -> nn.Module:
    """Loads `weights/<name>.safetensors` strictly into `model`, which comes back in eval mode."""
    model.load_state_dict(load_state(name))
    return model.eval()
