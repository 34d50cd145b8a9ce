"""Running products, extremes and sums of exponentials: log2(length) steps, each joins what is 1, 2, 4 ... before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from profiler.quant.deploy.emitters import Emission, emits, shape_of
from profiler.quant.deploy.graph import Value, constant

_Join = Callable[[Emission, Value, Value], Value]


@emits("cumprod.default")
def cumprod(g: Emission, x: Value, dim: int, *, dtype: Any = None) -> Value:
    """Running product; in float the factors are joined in another order than in torch."""
    return _scan(g, g.cast(x, g.out.dtype), dim, lambda g, a, b: g.binary("Mul", a, b), 1)


@emits("cummax.default")
def cummax(g: Emission, x: Value, dim: int) -> tuple[Value, None]:
    """Running largest; the positions have no ONNX form."""
    return _scan(g, x, dim, lambda g, a, b: g.binary("Max", a, b), _least(x.dtype)), None


@emits("cummin.default")
def cummin(g: Emission, x: Value, dim: int) -> tuple[Value, None]:
    """Running smallest; the positions have no ONNX form."""
    return _scan(g, x, dim, lambda g, a, b: g.binary("Min", a, b), _most(x.dtype)), None


@emits("logcumsumexp.default")
def logcumsumexp(g: Emission, x: Value, dim: int) -> Value:
    """Logarithm of the running sum of exponentials."""
    return _scan(g, x, dim, _log_add_exp, float("-inf"))


def _log_add_exp(g: Emission, a: Value, b: Value) -> Value:
    high, low = g.binary("Max", a, b), g.binary("Min", a, b)
    rest = g.node("Exp", g.binary("Sub", low, high))
    return g.binary("Add", high, g.node("Log", g.binary("Add", rest, 1.0)))


def _scan(g: Emission, x: Value, dim: int, join: _Join, neutral: Any) -> Value:
    shape = shape_of(x)
    if not shape:
        return x
    axis, length = dim % len(shape), shape[dim]
    for step in (2**i for i in range(math.ceil(math.log2(max(length, 1))))):
        pads = [0] * (2 * len(shape))
        pads[axis] = step
        rows = [constant([n], torch.int64) for n in (0, length - step, axis, 1)]
        earlier = replace(g.node("Slice", x, *rows), shape=None)
        shifted = g.node("Pad", earlier, constant(pads, torch.int64), constant(neutral, x.dtype))
        x = replace(join(g, x, replace(shifted, shape=shape)), shape=shape)
    return x


def _least(dtype: torch.dtype) -> Any:
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _most(dtype: torch.dtype) -> Any:
    return float("inf") if dtype.is_floating_point else torch.iinfo(dtype).max
