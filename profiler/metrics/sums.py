"""Sums of squares and products of large tensors: as fast as float32, as right as float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TINY = 1e-30  # mean product below which float32 underflow may have cost digits


def wide_enough(x: Tensor) -> Tensor:
    """Values as float32, or as float64 where they are; detached."""
    return x.detach() if x.dtype is torch.float64 else x.detach().float()


def sum_of_squares(x: Tensor) -> float:
    """Sum of squares of a flat float tensor, to 1e-6 relative; 0 for an empty one."""
    return sum_of_products(x, x)


def sum_of_products(x: Tensor, y: Tensor) -> float:
    """Sum of products of two flat float tensors of equal length.

    Products are taken in float32 and added in float64; where float32 over- or underflows they are taken again in float64.
    """
    value = float((x * y).sum(dtype=torch.float64))
    if _TINY * x.numel() < abs(value) < math.inf or not bool(x.any()) or not bool(y.any()):
        return value
    return float((x.double() * y.double()).sum())
