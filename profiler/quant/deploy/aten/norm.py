"""Normalisations in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


@emits("native_batch_norm.default")
def batch_norm(
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
    if training or mean is None or var is None:
        dims = [d for d in range(len(shape_of(x))) if d != 1]
        y = _normalised(g, x, dims, eps)
        return _affine(g, y, _channels(g, weight, x), _channels(g, bias, x)), None, None
    gain = g.binary("Div", 1.0, g.node("Sqrt", g.binary("Add", g.cast(var, x.dtype), eps)), x.dtype)
    if weight is not None:
        gain = g.binary("Mul", gain, weight)
    shift = g.node("Neg", g.binary("Mul", g.cast(mean, x.dtype), gain))
    if bias is not None:
        shift = g.binary("Add", shift, bias)
    return _affine(g, x, _channels(g, gain, x), _channels(g, shift, x)), None, None


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
