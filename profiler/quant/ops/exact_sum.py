"""Sums of integers that a float64 tensor carries, exact in every runtime and whatever the order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from profiler.quant.ops.geometry import sizes_of
from profiler.quant.requantize import FLOAT64_EXACT


def exact_sum(x: Tensor, dims: tuple[int, ...], largest: float) -> Tensor:
    """Sum over `dims`, which are kept, float64.

    Args:
        x: integers carried by float64.
        dims: dimensions to sum over; none for a 0-d tensor.
        largest: what no element's magnitude exceeds; below 2**53 in all, partial sums are exact in float64, else int64
            adds them (up to 2**63) and only the result is rounded.
    """
    if not x.dim():
        return x
    shape = sizes_of(x)
    if math.prod(shape[dim] for dim in dims) * largest < FLOAT64_EXACT:
        return x.sum(dims, keepdim=True)
    return x.to(torch.int64).sum(dims, keepdim=True).to(torch.float64)
