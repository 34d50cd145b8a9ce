"""Sizes and positions: plain numbers that a traced model holds as constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from profiler.quant.tracing import not_traced


@not_traced
def sizes_of(x: Tensor) -> tuple[int, ...]:
    """The shape as numbers, also under `torch.jit.trace`."""
    return tuple(x.shape)


@not_traced
def positions(values: Sequence[int], like: Tensor) -> Tensor:
    """Indices for `index_select` on the device of `like`."""
    return torch.tensor(values, dtype=torch.int64, device=like.device)


@not_traced
def weights(values: Sequence[float], like: Tensor) -> Tensor:
    """Factors in float64 on the device of `like`."""
    return torch.tensor(values, dtype=torch.float64, device=like.device)


def product_along(x: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """One axis through a matrix `[inputs, outputs]`.

    Args:
        x: whole numbers in float32 or float64, so that all sums are exact whatever their order.
        dim: the axis, from 0.
        matrix: whole numbers in the dtype of x; every sum must stay below 2**24 or 2**53.
    """
    shape = sizes_of(x)
    lead, trail = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    y = x.reshape(lead, shape[dim]) @ matrix if trail == 1 else matrix.T @ x.reshape(lead, shape[dim], trail)
    return y.reshape(*shape[:dim], matrix.shape[1], *shape[dim + 1 :])


@not_traced
def outer_product(factors: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """The product of one factor per axis, at least 1: `[n0, n1, ...]` in float64, such as the areas of windows."""
    product = torch.ones((), dtype=torch.float64, device=like.device)
    for along in factors:
        product = product[..., None] * torch.tensor(along, dtype=torch.float64, device=like.device)
    return product.clamp_min(1)
