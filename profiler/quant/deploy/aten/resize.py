"""Interpolation and sampling: nearest by gathers, linear and cubic by one matrix per dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from profiler.errors import UnsupportedOpError
from profiler.quant.deploy.emitters import Emission, emits, shape_of
from profiler.quant.deploy.graph import Value, constant

_KINDS = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _register_nearest(name: str, num_spatial: int) -> None:
    @emits(f"{name}{num_spatial}d.default")
    def emit(g: Emission, x: Value, output_size: Sequence[int], *scales: float | None) -> Value:
        """One gather per dimension; the positions come from torch's own operator on one line."""
        line = getattr(torch.ops.aten, f"{name}1d").default
        for i in range(num_spatial):
            axis = i - num_spatial
            size, out = shape_of(x)[axis], output_size[i]
            scale = scales[i] if i < len(scales) else None
            places = line(torch.arange(size, dtype=torch.float64).reshape(1, 1, -1), [out], scale).long().reshape(-1)
            if places.tolist() != list(range(size)):
                shape = list(shape_of(x))
                shape[axis] = out
                x = replace(g.gather(x, places, len(shape) + axis), shape=tuple(shape))
        return x


for _num in (1, 2, 3):
    _register_nearest("upsample_nearest", _num)
    _register_nearest("_upsample_nearest_exact", _num)


def _register_linear(name: str, num_spatial: int) -> None:
    @emits(f"{name}.default")
    def emit(g: Emission, x: Value, output_size: Sequence[int], align_corners: bool, *scales: float | None) -> Value:
        """One matrix per dimension, made by torch's own operator from unit vectors."""
        operator = getattr(torch.ops.aten, name).default
        for i in range(num_spatial):
            axis = i - num_spatial
            size, out = shape_of(x)[axis], int(output_size[i])
            if size == out:
                continue
            some_scales = [s if j == i else None for j, s in enumerate([*scales, *[None] * num_spatial][:num_spatial])]
            matrix = _matrix(operator, num_spatial, i, size, out, align_corners, some_scales)
            x = _times(g, x, matrix.to(x.dtype), axis)
        return x


for _num, _kind in _KINDS.items():
    _register_linear(f"upsample_{_kind}{_num}d", _num)
_register_linear("upsample_bicubic2d", 2)
_register_linear("_upsample_bilinear2d_aa", 2)
_register_linear("_upsample_bicubic2d_aa", 2)


def _matrix(operator: Any, num_spatial: int, i: int, size: int, out: int, align: bool, scales: list[Any]) -> Tensor:
    """`[size, out]`: what each input of a line gives to each output."""
    shape, target = [size, 1, *[1] * num_spatial], [2] * num_spatial
    shape[2 + i], target[i] = size, out
    unit = (
        torch.eye(size, dtype=torch.float64)
        .reshape(shape)
        .expand(size, 1, *[size if j == i else 2 for j in range(num_spatial)])
    )
    lines: Tensor = operator(unit.contiguous(), target, align, *scales).movedim(2 + i, 1)
    return lines.reshape(size, out, -1)[:, :, 0]


def _times(g: Emission, x: Value, matrix: Tensor, axis: int) -> Value:
    shape = list(shape_of(x))
    order = list(range(len(shape)))
    order[axis], order[-1] = order[-1], order[axis]
    shape[axis] = matrix.shape[1]
    if axis == -1:
        return replace(g.node("MatMul", x, constant(matrix)), shape=tuple(shape))
    product = g.node("MatMul", g.transpose(x, order), constant(matrix))
    return replace(g.node("Transpose", product, perm=order), shape=tuple(shape))


@emits("grid_sampler_2d.default")
def grid_sampler(
    g: Emission, x: Value, grid: Value, interpolation: int, padding: int, align_corners: bool, *_: Any
) -> Value:
    """Sampling at given positions.

    Raises:
        UnsupportedOpError: the input has three spatial dimensions.
    """
    if len(shape_of(x)) != 4:
        raise UnsupportedOpError("grid_sample of a volume has no ONNX form in this opset; sample slices instead")
    mode, outside = ("bilinear", "nearest", "bicubic")[interpolation], ("zeros", "border", "reflection")[padding]
    sampled = g.node(
        "GridSample",
        g.cast(x, torch.float32),
        g.cast(grid, torch.float32),
        mode=mode,
        padding_mode=outside,
        align_corners=int(align_corners),
    )
    return g.cast(sampled, x.dtype)
