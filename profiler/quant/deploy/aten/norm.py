"""Normalisations in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from profiler.quant.deploy.emitters import Emission, emits, shape_of
from profiler.quant.deploy.graph import Value


@emits("native_layer_norm.default")
def layer_norm(
    g: Emission, x: Value, normalized_shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, None, None]:
    """Over the last dimensions."""
    y = _normalised(g, x, list(range(-len(normalized_shape), 0)), eps)
    return _affine(g, y, weight, bias), None, None


@emits("native_group_norm.default")
def group_norm(
    g: Emission, x: Value, weight: Value | None, bias: Value | None, n: int, c: int, hxw: int, group: int, eps: float
) -> tuple[Value, None, None]:
    """Over groups of channels."""
    y = g.reshape(_normalised(g, g.reshape(x, [n, group, -1]), [2], eps), shape_of(x))
    return _affine(g, y, _channels(g, weight, x), _channels(g, bias, x)), None, None


@emits("_fused_rms_norm.default")
def rms_norm(
    g: Emission, x: Value, normalized_shape: Sequence[int], weight: Value | None, eps: float | None
) -> tuple[Value, None]:
    """By the root of the mean square over the last dimensions."""
    dims = list(range(-len(normalized_shape), 0))
    mean = g.reduce("ReduceMean", g.binary("Mul", x, x), dims, keepdim=True)
    root = g.node("Sqrt", g.binary("Add", mean, torch.finfo(x.dtype).eps if eps is None else eps))
    return _affine(g, g.binary("Div", x, root), weight, None), None


@emits("_native_batch_norm_legit_no_training.default")
def batch_norm(
    g: Emission,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    var: Value,
    momentum: float,
    eps: float,
) -> tuple[Value, None, None]:
    """With running statistics."""
    gain = g.binary("Div", 1.0, g.node("Sqrt", g.binary("Add", mean_dtype(g, var, x), eps)), x.dtype)
    if weight is not None:
        gain = g.binary("Mul", gain, weight)
    shift = g.node("Neg", g.binary("Mul", mean_dtype(g, mean, x), gain))
    if bias is not None:
        shift = g.binary("Add", shift, bias)
    shaped = [_channels(g, v, x) for v in (gain, shift)]
    return _affine(g, x, *shaped), None, None


@emits("native_batch_norm.default", "_native_batch_norm_legit.default", "cudnn_batch_norm.default")
def batch_norm_by_flag(
    g: Emission,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Value, None, None]:
    """With running statistics, or with those of the batch (instance norm)."""
    if not training and mean is not None and var is not None:
        return batch_norm(g, x, weight, bias, mean, var, momentum, eps)
    return _by_batch(g, x, weight, bias, eps)


@emits("_native_batch_norm_legit.no_stats")
def batch_norm_no_stats(
    g: Emission, x: Value, weight: Value | None, bias: Value | None, training: bool, momentum: float, eps: float
) -> tuple[Value, None, None]:
    """With the statistics of the batch."""
    return _by_batch(g, x, weight, bias, eps)


@emits("_batch_norm_impl_index.default")
def batch_norm_impl(g: Emission, *args: Any) -> tuple[Value | None, ...]:
    """The form that torch's own layer uses."""
    return (batch_norm_by_flag(g, *args[:8])[0], None, None, None, 0)  # type: ignore[return-value]


def mean_dtype(g: Emission, statistic: Value, x: Value) -> Value:
    """A statistic in the dtype of the input."""
    return g.cast(statistic, x.dtype)


def _by_batch(g: Emission, x: Value, weight: Value | None, bias: Value | None, eps: float) -> tuple[Value, None, None]:
    dims = [d for d in range(len(shape_of(x))) if d != 1]
    y = _normalised(g, x, dims, eps)
    return _affine(g, y, _channels(g, weight, x), _channels(g, bias, x)), None, None


def _normalised(g: Emission, x: Value, dims: list[int], eps: float) -> Value:
    centre = g.reduce("ReduceMean", x, _positive(x, dims), keepdim=True)
    distance = g.binary("Sub", x, centre)
    variance = g.reduce("ReduceMean", g.binary("Mul", distance, distance), _positive(x, dims), keepdim=True)
    return g.binary("Div", distance, g.node("Sqrt", g.binary("Add", variance, eps)))


def _positive(x: Value, dims: list[int]) -> list[int]:
    rank = len(shape_of(x))
    return [d % rank for d in dims]


def _affine(g: Emission, y: Value, weight: Value | None, bias: Value | None) -> Value:
    if weight is not None:
        y = g.binary("Mul", y, weight)
    return y if bias is None else g.binary("Add", y, bias)


def _channels(g: Emission, values: Value | None, x: Value) -> Any:
    """`[C]` viewed so that it broadcasts along axis 1."""
    if values is None:
        return None
    return g.reshape(values, [1, -1, *[1] * (len(shape_of(x)) - 2)])
