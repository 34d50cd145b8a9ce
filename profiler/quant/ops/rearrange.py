"""Ops that move codes to other places: pixel and channel shuffle, unfold, padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant.affine import qinfo, qint8, qint16, quantize
from profiler.quant.ops.geometry import positions, sizes_of
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, handles, to_float, user_line
from profiler.quant.tracing import not_traced

_PADS = ("Zero", "Constant", "Reflection", "Replication", "Circular")


@handles("pixel_shuffle")
def pixel_shuffle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`[..., C * r * r, H, W]` to `[..., C, H * r, W * r]`."""
    return _moved(_shuffled, args, kwargs, ("input", "upscale_factor"))


@handles("pixel_unshuffle")
def pixel_unshuffle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`[..., C, H * r, W * r]` to `[..., C * r * r, H, W]`."""
    return _moved(_unshuffled, args, kwargs, ("input", "downscale_factor"))


@handles("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Channels `[groups, C / groups]` in the order `[C / groups, groups]`."""
    return _moved(_channels_shuffled, args, kwargs, ("input", "groups"))


@handles("unfold")
def unfold(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`x.unfold(dimension, size, step)`, and F.unfold, whose patches become columns."""
    if func is F.unfold:
        return _moved(_patches, args, kwargs, ("input", "kernel_size", "dilation", "padding", "stride"))
    return _moved(_slices, args, kwargs, ("input", "dimension", "size", "step"))


@handles("pad", "constant_pad_nd")
def pad(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Padding keeps the scale; a constant is rounded to a code of it, but for calibration.

    One that lies outside the int8 range makes the result int16 at the same scale; beyond the int16 range it saturates.

    Raises:
        UnsupportedOpError: an unknown mode.
    """
    names = ("input", "pad", "mode", "value") if func is F.pad else ("input", "pad", "value")
    bound = {**dict(zip(names, args, strict=False)), **kwargs}
    source, widths = bound["input"], [int(w) for w in bound["pad"]]
    mode = bound.get("mode", "constant")
    if not isinstance(source, QTensor):
        return func(*to_float(args), **to_float(kwargs))
    if mode == "constant":
        value = bound.get("value") or 0
        source = _with_room_for(source, value)
        return source.like(F.pad(source.plain, widths, "constant", _constant(source, value)))
    if mode not in _POSITIONS:
        raise UnsupportedOpError(f"pad with mode {mode!r} is not implemented for QTensor, at {user_line()}")
    x = source.plain
    for axis, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        dim = x.dim() - 1 - axis
        if before or after:
            places = _POSITIONS[mode](sizes_of(x)[dim], before, after)
            x = x.index_select(dim, positions(places, x))
    return source.like(x)


def _with_room_for(source: QTensor, value: float) -> QTensor:
    """The tensor as int16 at its scale where an int8 code cannot hold the value."""
    if source.qdtype != qint8 or _fits(source, value):
        return source
    wide = source.like(source.plain.to(qinfo(qint16).torch_dtype) if source.holds_codes else source.plain)
    wide.qdtype = qint16
    return wide


@not_traced
def _fits(source: QTensor, value: float) -> bool:
    if value == 0 or not (source.holds_codes or source.is_rounded):
        return True
    number = torch.tensor(float(value), device=source.scale.device)
    return bool(quantize(number, source.scale, qinfo(qint16)) == quantize(number, source.scale, source.info))


@not_traced
def _constant(source: QTensor, value: float) -> float:
    """The value as the tensor holds it: a code, its real value, or in calibration the value itself."""
    if value == 0 or not (source.holds_codes or source.is_rounded):
        return value
    code = int(quantize(torch.tensor(float(value), device=source.scale.device), source.scale, source.info))
    return code if source.holds_codes else float(code * source.scale)


def _moved(move: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], names: Sequence[str]) -> Any:
    """Apply a pure rearrangement to the values or codes; negative dims and defaults are the function's own."""
    bound = {**dict(zip(names, args, strict=False)), **kwargs}
    bound["input"] = bound.pop("self", bound.get("input"))
    source = bound.pop("input")
    return source.like(move(source.plain, **bound))


def _shuffled(x: Tensor, upscale_factor: int) -> Tensor:
    *lead, channels, height, width = sizes_of(x)
    r = upscale_factor
    _require_divisible("pixel_shuffle", channels, r * r, "channels")
    count = len(lead)
    y = x.reshape(*lead, channels // r**2, r, r, height, width)
    y = y.permute(*range(count), count, count + 3, count + 1, count + 4, count + 2)
    return y.reshape(*lead, channels // r**2, height * r, width * r)


def _unshuffled(x: Tensor, downscale_factor: int) -> Tensor:
    *lead, channels, height, width = sizes_of(x)
    r = downscale_factor
    _require_divisible("pixel_unshuffle", height, r, "rows")
    _require_divisible("pixel_unshuffle", width, r, "columns")
    count = len(lead)
    y = x.reshape(*lead, channels, height // r, r, width // r, r)
    y = y.permute(*range(count), count, count + 2, count + 4, count + 1, count + 3)
    return y.reshape(*lead, channels * r**2, height // r, width // r)


def _channels_shuffled(x: Tensor, groups: int) -> Tensor:
    batch, channels, *rest = sizes_of(x)
    _require_divisible("channel_shuffle", channels, groups, "channels")
    grouped = x.reshape(batch, groups, channels // groups, *rest)
    return grouped.transpose(1, 2).reshape(batch, channels, *rest)


def _slices(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Overlapping slices of one dimension, their elements in a new last dimension."""
    dim = dimension % x.dim()
    shape = sizes_of(x)
    starts = range(0, shape[dim] - size + 1, step)
    picked = x.index_select(dim, positions([s + i for s in starts for i in range(size)], x))
    parts = picked.reshape(*shape[:dim], len(starts), size, *shape[dim + 1 :])
    return parts.movedim(dim + 1, -1)


def _patches(x: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """Patches as columns: `[N, C, H, W]` to `[N, C * kh * kw, L]`; zeros around."""
    batched = x if x.dim() == 4 else x[None]
    kernels, gaps, pads, steps = (_pair(v) for v in (kernel_size, dilation, padding, stride))
    y = F.pad(batched, (pads[1], pads[1], pads[0], pads[0]))
    counts = []
    for axis, (k, d, s) in enumerate(zip(kernels, gaps, steps, strict=True)):
        dim = 2 + 2 * axis  # each axis becomes (tap, place)
        shape = sizes_of(y)
        count = (shape[dim] - d * (k - 1) - 1) // s + 1
        y = y.index_select(dim, positions([i * s + t * d for t in range(k) for i in range(count)], x))
        y = y.reshape(*shape[:dim], k, count, *shape[dim + 1 :])
        counts.append(count)
    batch, channels = sizes_of(batched)[:2]
    columns = y.permute(0, 1, 2, 4, 3, 5).reshape(batch, channels * math.prod(kernels), math.prod(counts))
    return columns if x.dim() == 4 else columns[0]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _require_divisible(name: str, number: int, divisor: int, what: str) -> None:
    if number % divisor:
        raise UnsupportedOpError(f"{name}: {number} {what} at {user_line()}; expected a multiple of {divisor}")


def _reflected(length: int, before: int, after: int) -> list[int]:
    if max(before, after) >= length:
        raise UnsupportedOpError(
            f"reflect padding of {max(before, after)} at {user_line()}; expected less than the axis' length {length}"
        )
    return [abs(i) if i < length else 2 * (length - 1) - i for i in range(-before, length + after)]


def _replicated(length: int, before: int, after: int) -> list[int]:
    return [min(max(i, 0), length - 1) for i in range(-before, length + after)]


def _wrapped(length: int, before: int, after: int) -> list[int]:
    return [i % length for i in range(-before, length + after)]


_POSITIONS: dict[str, Callable[[int, int, int], list[int]]] = {
    "reflect": _reflected,
    "replicate": _replicated,
    "circular": _wrapped,
}

PIXEL_SHUFFLE = register(
    OpSpec("pixel_shuffle", Family.SCALE_KEEPING,
           functions=("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
           modules=(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
           note="pixel_shuffle, pixel_unshuffle, channel_shuffle")
)  # fmt: skip
UNFOLD = register(
    OpSpec("unfold", Family.SCALE_KEEPING, functions=("unfold",), modules=(nn.Unfold,),
           note="patches as columns, and the slices of Tensor.unfold")
)  # fmt: skip
PAD = register(
    OpSpec("pad", Family.SCALE_KEEPING, functions=("pad", "constant_pad_nd"),
           modules=tuple(getattr(nn, f"{kind}Pad{n}d") for kind in _PADS for n in (1, 2, 3)),
           note="constant (int16 where int8 cannot hold it), reflect, replicate, circular")
)  # fmt: skip
