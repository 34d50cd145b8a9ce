"""Products of integer codes as ConvInteger and MatMulInteger, recombined where the codes are int16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from profiler.quant.deploy.emitters import Emission, shape_of
from profiler.quant.deploy.graph import Value, constant


def integer_conv(
    g: Emission,
    x: Value,
    weight: Value,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value | None:
    """int32 (int64 for int16 codes) convolution of codes with known int8 weights; None where it is not one.

    Args:
        g: the call.
        x: `[N, C, ...]` or `[C, ...]`; integers, or float values that carry codes.
        weight: as torch has it: `[O, C / groups, ...]`, transposed `[C, O / groups, ...]`.
        stride: per dimension, like all that follow.
        padding: zeros on both sides.
        dilation: spacing of the kernel.
        transposed: whether it is a transposed convolution.
        output_padding: one-sided growth of a transposed convolution's output.
        groups: number of groups.
    """
    codes = x.codes or _kind(x.dtype)
    kernel = _int8_weight(weight)
    if not codes or kernel is None or g.out.dtype not in (torch.float32, torch.float64, torch.int32, torch.int64):
        return None
    num_spatial = kernel.dim() - 2
    pads = [*padding, *padding]
    batched = x if len(shape_of(x)) == num_spatial + 2 else g.reshape(x, (1, *shape_of(x)))
    steps = list(stride)
    if transposed:
        batched = spread(g, batched, stride)
        span = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        low = [s - p for s, p in zip(span, padding, strict=True)]
        high = [s - p + o for s, p, o in zip(span, padding, output_padding, strict=True)]
        batched, pads = crop(g, batched, low, high)
        kernel, steps = flipped(kernel, groups), [1] * num_spatial

    def product(part: Value) -> Value:
        made: Value = g.node(
            "ConvInteger",
            part,
            constant(kernel),
            dtype=torch.int32,
            strides=steps,
            pads=pads,
            dilations=list(dilation),
            group=groups,
        )
        return made

    y = _recombined(g, batched, codes, product)
    return y if len(shape_of(x)) == num_spatial + 2 else g.reshape(y, g.out.shape)


def integer_matmul(g: Emission, x: Value, other: Value) -> Value | None:
    """int32 (int64 for int16 codes) matrix product of codes; None where it is not one.

    The right operand is int8: known weights or codes of an activation. The left one may be int16.
    """
    codes, other_codes = x.codes or _kind(x.dtype), other.codes or _kind(other.dtype)
    right: Value | None = None
    if other_codes == "int8":
        right = g.cast(other, torch.int8)
    elif other.constant is not None:
        known_codes = _int8_weight(other)
        right = None if known_codes is None else constant(known_codes)
    if right is None or g.out.dtype not in (torch.float32, torch.float64, torch.int32, torch.int64):
        return None
    if codes not in ("int8", "int16") or min(len(shape_of(x)), len(shape_of(other))) < 2:
        return None

    def product(part: Value) -> Value:
        made: Value = g.node("MatMulInteger", part, right, dtype=torch.int32)
        return made

    return _recombined(g, x, codes, product)


def _recombined(g: Emission, x: Value, codes: str, product: object) -> Value:
    """One product of int8 codes; for int16 codes x = 256 * high + low two of them, joined in int64."""
    assert callable(product)
    if codes == "int8":
        value: Value = product(g.cast(x, torch.int8))
        return value
    wide = g.cast(x, torch.int32)
    low = g.node("Mod", wide, constant(256, torch.int32))
    high = g.node("Div", g.node("Sub", wide, low), constant(256, torch.int32))
    highs = g.cast(product(g.cast(replace(high, codes=""), torch.int8)), torch.int64)
    lows = g.cast(product(g.cast(replace(low, codes=""), torch.uint8)), torch.int64)
    return g.binary("Add", g.binary("Mul", highs, 256), lows)


def spread(g: Emission, x: Value, stride: Sequence[int]) -> Value:
    """`stride - 1` zeros between neighbours of each spatial dimension."""
    shape = list(shape_of(x))
    rank = len(shape)
    for i, step in enumerate(stride):
        axis = rank - len(stride) + i
        if step == 1:
            continue
        column = g.reshape(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
        pads = [0] * (2 * rank + 2)
        pads[rank + 1 + axis + 1] = step - 1
        filled = g.node("Pad", column, constant(pads, torch.int64), constant(0, x.dtype))
        length = (shape[axis] - 1) * step + 1
        wide = [*shape[:axis], shape[axis] * step, *shape[axis + 1 :]]
        merged = replace(g.reshape(replace(filled, shape=None), wide), codes="")
        rows = [constant([n], torch.int64) for n in (0, length, axis, 1)]
        shape[axis] = length
        x = replace(g.node("Slice", merged, *rows), shape=tuple(shape), codes=x.codes)
    return x


def crop(g: Emission, x: Value, low: Sequence[int], high: Sequence[int]) -> tuple[Value, list[int]]:
    """Cut off what negative padding asks for; the rest is left to the convolution."""
    shape = list(shape_of(x))
    for i, (begin, end) in enumerate(zip(low, high, strict=True)):
        axis = len(shape) - len(low) + i
        if begin < 0 or end < 0:
            stop = shape[axis] + min(end, 0)
            rows = [constant([n], torch.int64) for n in (max(-begin, 0), stop, axis, 1)]
            shape[axis] = stop - max(-begin, 0)
            x = replace(g.node("Slice", x, *rows), shape=tuple(shape), codes=x.codes)
    return x, [*[max(p, 0) for p in low], *[max(p, 0) for p in high]]


def flipped(weight: Tensor, groups: int) -> Tensor:
    """Weight of the convolution that a transposed one is: `[O, C / groups, ...]`, each kernel reversed."""
    c, per_group, *kernel = weight.shape
    grouped = weight.reshape(groups, c // groups, per_group, *kernel).transpose(1, 2)
    return grouped.reshape(groups * per_group, c // groups, *kernel).flip(list(range(2, weight.dim()))).contiguous()


def _kind(dtype: torch.dtype) -> str:
    return {torch.int8: "int8", torch.int16: "int16"}.get(dtype, "")


def _int8_weight(weight: Value) -> Tensor | None:
    """Known contents as int8, if they are integers of that range."""
    data = weight.constant
    if data is None:
        return None
    codes = data.to(torch.int8)
    return codes if torch.equal(codes.to(data.dtype), data) else None
