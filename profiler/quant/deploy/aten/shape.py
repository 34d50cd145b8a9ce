"""Operators that move elements: reshape, permute, slice, join, pad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from profiler.quant.deploy.emitters import Emission, emits, shape_of
from profiler.quant.deploy.graph import Value, constant

_END = 2**62


@emits("view.default", "_unsafe_view.default", "reshape.default", "unsqueeze.default", "squeeze.default",
       "squeeze.dim", "squeeze.dims")  # fmt: skip
def reshape(g: Emission, x: Value, *args: Any) -> Value:
    """Any operator that keeps the order of the elements: the real result has the shape."""
    return g.reshape(x, g.out.shape)


@emits("expand.default")
def expand(g: Emission, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Broadcast."""
    return g.expand(x, g.out.shape)


@emits("permute.default")
def permute(g: Emission, x: Value, dims: Sequence[int]) -> Value:
    """Permuted dimensions."""
    return g.transpose(x, [d % len(dims) for d in dims])


@emits("transpose.int")
def transpose(g: Emission, x: Value, dim0: int, dim1: int) -> Value:
    """Two dimensions swapped."""
    order = list(range(len(shape_of(x))))
    if order:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return g.transpose(x, order)


@emits("t.default")
def t(g: Emission, x: Value) -> Value:
    """Matrix transpose."""
    return g.transpose(x, list(range(len(shape_of(x))))[::-1])


@emits("slice.Tensor")
def slice_(g: Emission, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    """Part along a dimension."""
    if shape_of(x) == tuple(g.out.shape) and step == 1:
        return x
    return _slice(g, x, dim, start or 0, _END if end is None else end, step)


@emits("select.int")
def select(g: Emission, x: Value, dim: int, index: int) -> Value:
    """One position of a dimension, which goes away."""
    return g.gather(x, torch.tensor(index), dim)


@emits("split.Tensor")
def split(g: Emission, x: Value, split_size: int, dim: int = 0) -> tuple[Value, ...]:
    """Parts of one size; the last may be smaller."""
    return _parts(g, x, dim)


@emits("split_with_sizes.default")
def split_with_sizes(g: Emission, x: Value, split_sizes: Sequence[int], dim: int = 0) -> tuple[Value, ...]:
    """Parts of given sizes."""
    return _parts(g, x, dim)


@emits("unbind.int")
def unbind(g: Emission, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """One value per position of a dimension."""
    return tuple(g.gather(x, torch.tensor(i), dim) for i in range(len(g.result)))


@emits("cat.default")
def cat(g: Emission, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Join along a dimension."""
    parts = [v for v in tensors if shape_of(v) != (0,)]
    ranges = {v.codes or str(v.dtype)[6:] for v in parts}
    codes = ranges.pop() if len(ranges) == 1 else ""
    joined = g.node("Concat", *[g.cast(v, g.out.dtype) for v in parts], axis=dim)
    return replace(joined, codes=codes if codes in ("int8", "int16") and joined.dtype.is_floating_point else "")


@emits("stack.default")
def stack(g: Emission, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Join along a new dimension."""
    rank = g.out.dim()
    axis = constant([dim % rank], torch.int64)
    parts = [g.node("Unsqueeze", g.cast(v, g.out.dtype), axis) for v in tensors]
    return g.node("Concat", *parts, axis=dim % rank)


@emits("repeat.default")
def repeat(g: Emission, x: Value, repeats: Sequence[int]) -> Value:
    """Copies side by side."""
    full = g.reshape(x, (1,) * (len(repeats) - len(shape_of(x))) + shape_of(x))
    return replace(g.node("Tile", full, constant(list(repeats), torch.int64)), codes=x.codes)


@emits("constant_pad_nd.default")
def constant_pad(g: Emission, x: Value, pad: Sequence[int], value: Any = 0) -> Value:
    """Pad with a number; negative padding cuts off."""
    rank = len(shape_of(x))
    begins, ends = [0] * rank, [0] * rank
    for i in range(len(pad) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = pad[2 * i], pad[2 * i + 1]
    codes = x.codes if value == 0 else ""
    for axis in range(rank):
        if begins[axis] < 0 or ends[axis] < 0:
            x = _slice(g, x, axis, max(-begins[axis], 0), -max(-ends[axis], 0) or _END, 1)
    if max(begins + ends) > 0:
        pads = constant([max(p, 0) for p in begins + ends], torch.int64)
        x = g.node("Pad", x, pads, constant(value, x.dtype))
    return replace(x, codes=codes)


def _register_padding(mode: str, num_spatial: int) -> None:
    @emits(f"{mode}_pad{num_spatial}d.default")
    def emit(g: Emission, x: Value, padding: Sequence[int]) -> Value:
        """Pad by elements of the tensor: one gather per padded dimension."""
        rank = len(shape_of(x))
        for i in range(num_spatial):
            low, high = padding[2 * i], padding[2 * i + 1]
            if low or high:
                axis = rank - 1 - i
                x = g.gather(x, _pad_positions(mode, int(g.out.shape[axis]) - low - high, low, high), axis)
        return x


def _pad_positions(mode: str, length: int, low: int, high: int) -> torch.Tensor:
    positions = torch.arange(-low, length + high)
    if mode == "replication":
        return positions.clamp(0, length - 1)
    positions = positions.abs()
    return torch.where(positions >= length, 2 * (length - 1) - positions, positions)


for _mode in ("reflection", "replication"):
    for _num in (1, 2, 3):
        _register_padding(_mode, _num)


@emits("flip.default")
def flip(g: Emission, x: Value, dims: Sequence[int]) -> Value:
    """Reversed along dimensions."""
    for dim in dims:
        x = replace(g.gather(x, torch.arange(shape_of(x)[dim]).flip(0), dim), shape=x.shape)
    return x


@emits("roll.default")
def roll(g: Emission, x: Value, shifts: Any, dims: Any = ()) -> Value:
    """Rotated along dimensions."""
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    shape = shape_of(x)
    if not dims:
        row = g.gather(g.reshape(x, [-1]), torch.arange(g.out.numel()).roll(shifts[0]), 0)
        return g.reshape(row, shape)
    for shift, dim in zip(shifts, dims, strict=True):
        x = g.gather(x, torch.arange(shape[dim]).roll(shift), dim)
    return x


@emits("pixel_shuffle.default")
def pixel_shuffle(g: Emission, x: Value, factor: int) -> Value:
    """Channels to space."""
    *lead, c, h, w = shape_of(x)
    parts = g.reshape(x, [*lead, c // factor**2, factor, factor, h, w])
    n = len(lead)
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    return g.reshape(g.transpose(parts, order), g.out.shape)


@emits("pixel_unshuffle.default")
def pixel_unshuffle(g: Emission, x: Value, factor: int) -> Value:
    """Space to channels."""
    *lead, c, h, w = shape_of(x)
    parts = g.reshape(x, [*lead, c, h // factor, factor, w // factor, factor])
    n = len(lead)
    order = [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    return g.reshape(g.transpose(parts, order), g.out.shape)


@emits("channel_shuffle.default")
def channel_shuffle(g: Emission, x: Value, groups: int) -> Value:
    """Groups of channels interleaved."""
    channels = shape_of(x)[1]
    return g.gather(x, torch.arange(channels).reshape(groups, -1).t().reshape(-1), 1)


def _register_triangle(name: str, make: Callable[..., torch.Tensor]) -> None:
    @emits(f"{name}.default")
    def emit(g: Emission, x: Value, diagonal: int = 0) -> Value:
        """Zeros on one side of a diagonal."""
        mask = make(torch.ones(shape_of(x)[-2:], dtype=torch.bool), diagonal)
        return g.where(constant(mask), x, 0, x.dtype)


_register_triangle("tril", torch.tril)
_register_triangle("triu", torch.triu)


def _parts(g: Emission, x: Value, dim: int) -> tuple[Value, ...]:
    """The real results say how long each part is."""
    parts, start = [], 0
    for tensor in g.result:
        length = tensor.shape[dim]
        parts.append(_slice(g, x, dim, start, start + length, 1))
        start += length
    return tuple(parts)


def _slice(g: Emission, x: Value, dim: int, start: int, end: int, step: int) -> Value:
    if len(shape_of(x)) and dim < 0:
        dim += len(shape_of(x))
    rows = [constant([n], torch.int64) for n in (start, min(end, _END), dim, step)]
    value = g.node("Slice", x, *rows)
    return replace(value, codes=x.codes, shape=x.shape)  # rank only; the real result gives the sizes
