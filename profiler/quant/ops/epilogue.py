"""What a fused weighted op does after its product: add another operand, activate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.errors import PrepareError
from profiler.quant.affine import round_half_even
from profiler.quant.qtensor import to_plain

_ACTIVATION_NAMES = {"": "", "relu": "ReLU", "relu6": "ReLU6"}


@dataclass(frozen=True)
class Epilogue:
    """What a fused op does after its product: add another operand, then an activation."""

    has_add: bool = False
    activation: str = ""

    def class_name(self, base: str) -> str:
        """Name that users know: Conv2d -> ConvAddReLU2d, Linear -> LinearReLU."""
        stem = base.rstrip("0123456789d") if base[-1:] == "d" else base
        return f"{stem}{'Add' if self.has_add else ''}{_ACTIVATION_NAMES[self.activation]}{base[len(stem) :]}"

    @property
    def bounds(self) -> tuple[float, float]:
        """What the activation clamps to, as real values."""
        return {"": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}[self.activation]

    def apply(self, y: Tensor, other: Tensor | None) -> Tensor:
        """Add and activate in float."""
        if self.has_add:
            if other is None:
                raise PrepareError("a fused add got one operand; call its add(x, y)")
            y = y + other
        if self.activation == "relu":
            return F.relu(y)
        return F.relu6(y) if self.activation == "relu6" else y


def in_steps(value: Tensor | None, step: Tensor) -> Tensor | None:
    """A bias or other operand in whole steps, as the integer form adds it; its gradient is that of the value."""
    if value is None:
        return None
    if value.dim() > 1:  # float32 is exact enough for an operand, and half the memory
        step = step.to(value.dtype)
    rounded = round_half_even(value.detach() / step).mul_(step).to(value.dtype)
    return value + (rounded - value.detach()) if value.requires_grad else rounded


def in_accumulator_steps(other: Any, multiplier: Tensor) -> Tensor:
    """The other operand of a fused add in steps of the accumulator: product in float32, rounded once."""
    return round_half_even(to_plain(other).to(torch.float32) * multiplier)


def expands_to(theirs: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether an operand of the shape `theirs` broadcasts to a product that stays as large; not if that is empty."""
    pairs = zip(reversed(theirs), reversed(shape), strict=False)
    return len(theirs) <= len(shape) and 0 not in shape and all(size in (1, ours) for size, ours in pairs)
