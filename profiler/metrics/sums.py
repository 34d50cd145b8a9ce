"""Sums of squares and products of large tensors: as fast as float32, as right as float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROW = 4096  # values added in float32: its rounding stays below 1e-6
_TINY = 1e-30  # mean product below which float32 underflow may have cost digits


def wide_enough(x: Tensor) -> Tensor:
    """Values as float32, or as float64 where they are; detached."""
    return x.detach() if x.dtype is torch.float64 else x.detach().float()


def is_finite(x: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor Inf: its extremes tell, without a mask of its size."""
    if x.numel() == 0:
        return True
    low, high = torch.aminmax(x)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def sum_of_magnitudes(x: Tensor) -> float:
    """Sum of |x| of a flat float tensor, to 1e-6 relative; 0 for an empty one."""
    whole = x.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(x[:whole].view(-1, _ROW), ord=1, dim=1)
    return float(rows.double().sum() + x[whole:].double().abs().sum())


def sum_of_squares(x: Tensor) -> float:
    """Sum of squares of a flat float tensor, to 1e-6 relative; 0 for an empty one."""
    return sum_of_products(x, x)


def sum_of_products(x: Tensor, y: Tensor) -> float:
    """Sum of products of two flat float tensors of equal length.

    Products are taken in float32 and added over rows of 4096, the rows in float64; where float32 over- or underflows,
    all of it in float64.
    """
    whole = x.numel() // _ROW * _ROW
    rows = (x[:whole] * y[:whole]).view(-1, _ROW).sum(1)
    value = float(rows.double().sum() + (x[whole:].double() * y[whole:].double()).sum())
    if _TINY * x.numel() < abs(value) < math.inf or not bool(x.any()) or not bool(y.any()):
        return value
    return float((x.double() * y.double()).sum())
