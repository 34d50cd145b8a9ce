"""Batch norm with running statistics as a gain and a shift, folded into the weighted op before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.errors import PrepareError
from profiler.quant.affine import along_axis


def fold_batch_norm(rows: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a weighted op followed by a batch norm with running statistics.

    Args:
        rows: weight, output channels first: `[C, ...]` float.
        bias: `[C]` float or None.
        norm: BatchNorm with running_mean, running_var, eps and optional weight and bias, all `[C]`.

    Returns:
        Folded weight and bias in the dtype of `rows`; computed in float64. Gradients reach all parameters.

    Raises:
        PrepareError: the norm keeps no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise PrepareError("BatchNorm with track_running_stats=False cannot be folded; leave it unfused")
    gain, shift = batch_norm_affine(norm)
    new_rows = rows.double() * along_axis(gain, rows.dim(), 0)
    new_bias = shift if bias is None else bias.double() * gain + shift
    return new_rows.to(rows.dtype), new_bias.to(rows.dtype)


def batch_norm_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Gain and shift `[C]` in float64 of a batch norm with running statistics: y = gain * x + shift."""
    gain = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    shift = -norm.running_mean.double() * gain
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return gain, shift
