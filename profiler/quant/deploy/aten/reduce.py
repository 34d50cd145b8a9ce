"""Sums, means, extremes, sorting and counting along dimensions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from profiler.quant.deploy.emitters import Emission, emits, shape_of
from profiler.quant.deploy.graph import Value, constant


@emits("sum.dim_IntList", "sum.default")
def sum_(g: Emission, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """Sum over dimensions, in the dtype of the result."""
    return _reduce(g, "ReduceSum", g.cast(x, g.out.dtype), dim, keepdim)


@emits("mean.dim", "mean.default")
def mean(g: Emission, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """Mean over dimensions."""
    return _reduce(g, "ReduceMean", g.cast(x, g.out.dtype), dim, keepdim)


@emits("prod.default", "prod.dim_int")
def prod(g: Emission, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """Product over a dimension."""
    return _reduce(g, "ReduceProd", g.cast(x, g.out.dtype), dim, keepdim)


@emits("amax.default", "max.default")
def amax(g: Emission, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Largest over dimensions."""
    return _reduce(g, "ReduceMax", x, dim, keepdim)


@emits("amin.default", "min.default")
def amin(g: Emission, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Smallest over dimensions."""
    return _reduce(g, "ReduceMin", x, dim, keepdim)


@emits("max.dim")
def max_dim(g: Emission, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    """Largest along a dimension, and where it is first."""
    return _reduce(g, "ReduceMax", x, dim, keepdim), argmax(g, x, dim, keepdim)


@emits("min.dim")
def min_dim(g: Emission, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    """Smallest along a dimension, and where it is first."""
    return _reduce(g, "ReduceMin", x, dim, keepdim), argmin(g, x, dim, keepdim)


@emits("argmax.default")
def argmax(g: Emission, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    """Position of the first largest."""
    return _arg(g, "ArgMax", x, dim, keepdim)


@emits("argmin.default")
def argmin(g: Emission, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    """Position of the first smallest."""
    return _arg(g, "ArgMin", x, dim, keepdim)


@emits("any.default", "any.dim", "any.dims")
def any_(g: Emission, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Whether one is true."""
    truth = g.cast(g.cast(x, torch.bool), torch.int32)
    return g.cast(_reduce(g, "ReduceMax", truth, dim, keepdim), torch.bool)


@emits("all.default", "all.dim", "all.dims")
def all_(g: Emission, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Whether all are true."""
    truth = g.cast(g.cast(x, torch.bool), torch.int32)
    return g.cast(_reduce(g, "ReduceMin", truth, dim, keepdim), torch.bool)


@emits("var.correction")
def var(g: Emission, x: Value, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Value:
    """Variance over dimensions."""
    return var_mean(g, x, dim, correction=correction, keepdim=keepdim)[0]


@emits("std.correction")
def std(g: Emission, x: Value, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Value:
    """Standard deviation over dimensions."""
    value = var(g, x, dim, correction=correction, keepdim=keepdim)
    return g.node("Sqrt", value)


@emits("var_mean.correction")
def var_mean(
    g: Emission, x: Value, dim: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> tuple[Value, Value]:
    """Variance and mean over dimensions."""
    dims = _dims(x, dim)
    count = 1
    for d in dims:
        count *= shape_of(x)[d]
    centre = g.reduce("ReduceMean", x, dims, keepdim=True)
    distance = g.binary("Sub", x, centre)
    squares = g.reduce("ReduceSum", g.binary("Mul", distance, distance), dims, keepdim=True)
    variance = g.binary("Div", squares, float(count - (1 if correction is None else correction)))
    if keepdim:
        return variance, centre
    kept = [n for d, n in enumerate(shape_of(x)) if d not in dims]
    return g.reshape(variance, kept), g.reshape(centre, kept)


@emits("linalg_vector_norm.default")
def vector_norm(
    g: Emission, x: Value, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    """Norm of order 1, 2, infinity or any other positive number."""
    x = g.cast(x, g.out.dtype)
    size = g.node("Abs", x)
    if ord == float("inf"):
        return _reduce(g, "ReduceMax", size, dim, keepdim)
    if ord == 1:
        return _reduce(g, "ReduceSum", size, dim, keepdim)
    if ord == 2:
        return g.node("Sqrt", _reduce(g, "ReduceSum", g.binary("Mul", x, x), dim, keepdim))
    total = _reduce(g, "ReduceSum", g.binary("Pow", size, float(ord)), dim, keepdim)
    return g.binary("Pow", total, 1.0 / ord)


@emits("_cdist_forward.default")
def cdist(g: Emission, x: Value, other: Value, p: float = 2.0, *_: Any) -> Value:
    """Distance of every row to every row."""
    columns, rows = (g.node("Unsqueeze", v, constant([axis], torch.int64)) for v, axis in ((x, -2), (other, -3)))
    distance = replace(g.binary("Sub", columns, rows), shape=(*g.out.shape, shape_of(x)[-1]))
    return vector_norm(g, distance, p, [-1])


@emits("cumsum.default")
def cumsum(g: Emission, x: Value, dim: int, *, dtype: Any = None) -> Value:
    """Running sum."""
    axis = constant(dim, torch.int64)
    return g.node("CumSum", g.cast(x, g.out.dtype), axis)


@emits("topk.default")
def topk(
    g: Emission, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, Value]:
    """The k largest and their positions; which of equal ones come first is left open, as in torch."""
    return _topk(g, x, k, dim, largest)


@emits("sort.default", "sort.stable")
def sort(g: Emission, x: Value, *args: Any, **kwargs: Any) -> tuple[Value, Value]:
    """All sorted, equal ones in their order, and their positions."""
    names = dict(zip(("dim", "descending"), args[-2:], strict=False)) | kwargs
    dim = int(names.get("dim", -1))
    return _topk(g, x, shape_of(x)[dim] if shape_of(x) else 1, dim, bool(names.get("descending", False)))


def _topk(g: Emission, x: Value, k: int, dim: int, largest: bool) -> tuple[Value, Value]:
    count = constant([k], torch.int64)
    kinds = [x.dtype, torch.int64]
    values, positions = g.nodes_of("TopK", x, count, dtypes=kinds, axis=dim, largest=int(largest), sorted=1)
    return values, positions


def _dims(x: Value, dim: Any) -> list[int]:
    rank = len(shape_of(x))
    if dim is None or dim == []:
        return list(range(rank))
    return [d % max(rank, 1) for d in ([dim] if isinstance(dim, int) else dim)]


def _reduce(g: Emission, op: str, x: Value, dim: Any, keepdim: bool) -> Value:
    if not shape_of(x):
        return x
    return g.reduce(op, x, _dims(x, dim), keepdim)


def _arg(g: Emission, op: str, x: Value, dim: int | None, keepdim: bool) -> Value:
    if dim is None:
        flat = g.node(op, g.reshape(x, [-1]), dtype=torch.int64, axis=0, keepdims=0)
        return g.reshape(flat, [1] * len(shape_of(x)) if keepdim else [])
    return g.node(op, x, dtype=torch.int64, axis=dim, keepdims=int(keepdim))
