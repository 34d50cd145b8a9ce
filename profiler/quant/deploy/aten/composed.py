"""Operators that ONNX has not, put together from those that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from profiler.errors import UnsupportedOpError
from profiler.quant.deploy.aten.index import updates_like
from profiler.quant.deploy.emitters import Emission, broadcast, emits, shape_of
from profiler.quant.deploy.graph import Value, constant


@emits("_trilinear.default")
def trilinear(
    g: Emission,
    x: Value,
    weight: Value,
    other: Value,
    expand_x: Sequence[int],
    expand_weight: Sequence[int],
    expand_other: Sequence[int],
    sum_dims: Sequence[int],
    *_: Any,
) -> Value:
    """Sum of products of three tensors: nn.Bilinear as two matrix products, what is otherwise summed as it is."""
    if [list(v) for v in (expand_x, expand_weight, expand_other, sum_dims)] == [[1, 3], [0], [1, 2], [2, 3]]:
        (rows, length), num_out = shape_of(x), shape_of(weight)[0]
        table = g.reshape(g.transpose(weight, [1, 0, 2]), [length, -1])
        by_output = replace(g.node("MatMul", x, table), shape=(rows, num_out * shape_of(other)[1]))
        column = g.reshape(other, [rows, shape_of(other)[1], 1])
        product = g.node("MatMul", g.reshape(by_output, [rows, num_out, shape_of(other)[1]]), column)
        return g.reshape(replace(product, shape=(rows, num_out, 1)), g.out.shape)
    factors = [_unsqueezed(g, v, d) for v, d in ((x, expand_x), (weight, expand_weight), (other, expand_other))]
    product = g.binary("Mul", g.binary("Mul", factors[0], factors[1]), factors[2])
    return g.reduce("ReduceSum", replace(product, shape=broadcast(*map(shape_of, factors))), sum_dims)


def _unsqueezed(g: Emission, x: Value, dims: Sequence[int]) -> Value:
    shape = list(shape_of(x))
    for dim in sorted(dims):
        shape.insert(dim, 1)
    return g.reshape(x, shape)


@emits("erfc.default")
def erfc(g: Emission, x: Value) -> Value:
    """`1 - erf(x)`, in float32; exact to the spacing of numbers near 1."""
    error = g.cast(g.node("Erf", g.cast(x, torch.float32)), g.out.dtype)
    return g.binary("Sub", constant(1.0, g.out.dtype), error)


@emits("hypot.default")
def hypot(g: Emission, x: Value, other: Value) -> Value:
    """Length of a vector of two parts, scaled by the larger so that squares stay in range."""
    a, b = g.node("Abs", g.cast(x, g.out.dtype)), g.node("Abs", g.cast(other, g.out.dtype))
    high, low = g.binary("Max", a, b), g.binary("Min", a, b)
    is_zero = g.compare("Equal", high, 0)
    ratio = g.binary("Div", low, g.where(is_zero, 1, high, g.out.dtype))
    return g.binary("Mul", high, g.node("Sqrt", g.binary("Add", g.binary("Mul", ratio, ratio), 1)))


@emits("signbit.default")
def signbit(g: Emission, x: Value) -> Value:
    """Whether the sign bit is set: also that of -0."""
    if not x.dtype.is_floating_point:
        return g.compare("Less", x, 0)
    below, zero = g.compare("Less", x, 0), g.compare("Equal", x, 0)
    reciprocal_below = g.compare("Less", g.node("Reciprocal", x), 0)
    return g.node("Or", below, g.node("And", zero, reciprocal_below))


@emits("copysign.Tensor", "copysign.Scalar")
def copysign(g: Emission, x: Value, sign: Any) -> Value:
    """Magnitude of one, sign of the other."""
    size = g.node("Abs", g.cast(x, g.out.dtype))
    is_negative = signbit(g, sign if isinstance(sign, Value) else constant(float(sign)))
    return g.where(is_negative, g.node("Neg", size), size, g.out.dtype)


@emits("median.dim")
def median(g: Emission, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    """The lower one of the middle along a dimension; where equal ones lie is left open, as in torch."""
    length = shape_of(x)[dim] if shape_of(x) else 1
    return kthvalue(g, x, (length + 1) // 2, dim, keepdim)


@emits("kthvalue.default")
def kthvalue(g: Emission, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    """The k-th smallest along a dimension."""
    shape = shape_of(x)
    row = x if shape else g.reshape(x, [1])
    kinds = [x.dtype, torch.int64]
    sizes = constant([k], torch.int64)
    found = g.nodes_of("TopK", row, sizes, dtypes=kinds, axis=dim, largest=0, sorted=1)
    position = torch.tensor([k - 1] if keepdim and shape else k - 1)
    values, places = (g.gather(v, position, dim) for v in found)
    return replace(values, codes=x.codes), places


@emits("bucketize.Tensor", "searchsorted.Tensor")
def bucketize(g: Emission, first: Value, second: Value, *, right: bool = False, **kwargs: Any) -> Value:
    """How many of sorted boundaries lie below: of one row of them, or of a row for each row of numbers.

    Raises:
        UnsupportedOpError: boundaries that have to be sorted first.
    """
    x, boundaries = (second, first) if "searchsorted" in str(g.run) else (first, second)
    if kwargs.get("sorter") is not None:
        raise UnsupportedOpError("searchsorted with a sorter has no ONNX form here; sort the boundaries before")
    is_right = right or kwargs.get("side") == "right"
    row = boundaries if len(shape_of(boundaries)) < 2 else g.reshape(boundaries, _with_axis(shape_of(boundaries), -2))
    column = g.reshape(x, (*shape_of(x), 1))
    dtype = torch.promote_types(x.dtype, boundaries.dtype)
    is_below = g.compare("LessOrEqual" if is_right else "Less", row, column, dtype)
    total = g.node("ReduceSum", g.cast(is_below, torch.int64), constant([-1], torch.int64), keepdims=0)
    return g.cast(total, g.out.dtype)


def _with_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """A shape with an axis of size 1 that ends up at a place counted from the end."""
    place = len(shape) + 1 + axis
    return (*shape[:place], 1, *shape[place:])


@emits("scatter_reduce.two")
def scatter_reduce(
    g: Emission, x: Value, dim: int, index: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Value:
    """Join one element per index with what is there, by sum, product or extreme.

    Raises:
        UnsupportedOpError: a mean, or without what is there.
    """
    names = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}
    if reduce not in names or not include_self:
        raise UnsupportedOpError(f"scatter_reduce of {reduce!r} with include_self={include_self} has no ONNX form")
    return g.node("ScatterElements", x, index, updates_like(g, x, index, source), axis=dim, reduction=names[reduce])
