"""Norms in numpy float64, written from their formulas."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def array(t: Tensor | None, neutral: float) -> np.ndarray:
    """A parameter as float64."""
    return np.array(neutral) if t is None else t.detach().numpy().astype(np.float64)


def along_channels(values: np.ndarray, ndim: int) -> np.ndarray:
    """`[C]` along axis 1."""
    return values if values.ndim == 0 else values.reshape(1, -1, *[1] * (ndim - 2))


def standardized(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    """`(x - mean) / sqrt(var + eps)`."""
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def group_norm(x: np.ndarray, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> np.ndarray:
    """Group norm of `[N, C, ...]`."""
    y = standardized(x.reshape(x.shape[0], groups, -1), (2,), eps).reshape(x.shape)
    return y * along_channels(array(weight, 1), x.ndim) + along_channels(array(bias, 0), x.ndim)
