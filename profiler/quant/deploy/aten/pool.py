"""Pooling over windows: maxima by MaxPool, sums and means by one gather and one sum per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from profiler.quant.deploy.emitters import Emission, emits, shape_of
from profiler.quant.deploy.graph import Value, constant

_Windows = list[list[int]]


def _register_max_pool(num_spatial: int) -> None:
    @emits(f"max_pool{num_spatial}d_with_indices.default")
    def emit(
        g: Emission,
        x: Value,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Any:
        """Largest of each window; the positions have no ONNX form."""
        kernel = _each(kernel_size, num_spatial)
        steps = _each(stride, num_spatial) or kernel
        pads, dilations = _each(padding, num_spatial), _each(dilation, num_spatial)
        shape = shape_of(x)
        batched = x if len(shape) == num_spatial + 2 else g.reshape(x, (1, *shape))
        ends = []
        for i in range(num_spatial):
            need = (g.out.shape[i - num_spatial] - 1) * steps[i] + dilations[i] * (kernel[i] - 1) + 1
            ends.append(max(need - shape[i - num_spatial] - pads[i], 0))
        lowest = _lowest(x.dtype)
        amounts = [0, 0, *pads, 0, 0, *ends]
        if any(amounts):
            batched = g.node("Pad", batched, constant(amounts, torch.int64), constant(lowest, x.dtype))
        y = g.node("MaxPool", batched, kernel_shape=kernel, strides=steps, dilations=dilations)
        y = replace(g.reshape(y, g.out.shape), codes=x.codes)
        return y, None


_register_max_pool(2)
_register_max_pool(3)


def _register_avg_pool(num_spatial: int) -> None:
    @emits(f"avg_pool{num_spatial}d.default")
    def emit(
        g: Emission,
        x: Value,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        """Mean of each window, by every divisor rule of torch."""
        kernel = _each(kernel_size, num_spatial)
        steps, pads = _each(stride, num_spatial) or kernel, _each(padding, num_spatial)
        sizes, outs = shape_of(x)[-num_spatial:], g.out.shape[-num_spatial:]
        windows: list[_Windows] = []
        counts = []
        for size, out, k, s, p in zip(sizes, outs, kernel, steps, pads, strict=True):
            starts = [i * s - p for i in range(out)]
            windows.append([list(range(max(b, 0), min(b + k, size))) for b in starts])
            ends = [min(b + k, size + p) for b in starts] if count_include_pad else None
            counts.append([e - b for b, e in zip(starts, ends, strict=True)] if ends else list(map(len, windows[-1])))
        divisor = torch.tensor(float(divisor_override)) if divisor_override else _products(counts)
        return g.binary("Div", _window_sums(g, x, windows), constant(divisor, x.dtype), x.dtype)


_register_avg_pool(2)
_register_avg_pool(3)


@emits("_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default")
def adaptive_avg_pool(g: Emission, x: Value, output_size: Sequence[int]) -> Value:
    """Mean of windows of unequal size."""
    windows = _adaptive_windows(g, x, len(output_size))
    divisor = _products([list(map(len, w)) for w in windows])
    return g.binary("Div", _window_sums(g, x, windows), constant(divisor, x.dtype), x.dtype)


@emits("adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def adaptive_max_pool(g: Emission, x: Value, output_size: Sequence[int]) -> tuple[Value, None]:
    """Largest of windows of unequal size."""
    for axis, windows in _from_last(_adaptive_windows(g, x, len(output_size))):
        longest = max(map(len, windows))
        places = torch.tensor([w + [w[-1]] * (longest - len(w)) for w in windows])
        x = _reduced_windows(g, x, places, axis, "ReduceMax")
    return x, None


def _adaptive_windows(g: Emission, x: Value, num_spatial: int) -> list[_Windows]:
    windows: list[_Windows] = []
    for size, out in zip(shape_of(x)[-num_spatial:], g.out.shape[-num_spatial:], strict=True):
        windows.append([list(range(i * size // out, -(-(i + 1) * size // out))) for i in range(out)])
    return windows


def _window_sums(g: Emission, x: Value, windows: list[_Windows]) -> Value:
    """Sums over windows, one dimension after the other; short windows read a zero behind the end."""
    for axis, along in _from_last(windows):
        shape = shape_of(x)
        longest = max(map(len, along))
        if along == [list(range(shape[axis]))]:
            kept = (*shape[:axis], 1, *shape[axis + 1 :]) if axis != -1 else (*shape[:-1], 1)
            x = replace(g.reduce("ReduceSum", x, [axis], keepdim=True), shape=kept)
            continue
        if any(len(w) < longest for w in along):
            x = _with_zero(g, x, axis)
        places = torch.tensor([w + [shape[axis]] * (longest - len(w)) for w in along])
        x = _reduced_windows(g, x, places, axis, "ReduceSum")
    return x


def _reduced_windows(g: Emission, x: Value, places: torch.Tensor, axis: int, op: str) -> Value:
    """Gather `[.., outputs, window, ..]` at an axis (counted from the end), then reduce the window."""
    shape = list(shape_of(x))
    position = len(shape) + axis
    if places.shape[1] == 1:
        y = g.gather(x, places[:, 0], position)
    else:
        y = g.node(op, g.gather(x, places, position), constant([position + 1], torch.int64), keepdims=0)
    shape[axis] = places.shape[0]
    return replace(y, shape=tuple(shape))


def _with_zero(g: Emission, x: Value, axis: int) -> Value:
    rank = len(shape_of(x))
    pads = [0] * (2 * rank)
    pads[axis] = 1
    padded = g.node("Pad", x, constant(pads, torch.int64), constant(0, x.dtype))
    return replace(padded, shape=x.shape)


def _from_last(windows: list[_Windows]) -> list[tuple[int, _Windows]]:
    return [(-1 - i, along) for i, along in enumerate(reversed(windows))]


def _products(counts: list[list[int]]) -> torch.Tensor:
    """Outer product of window sizes."""
    result = torch.ones((), dtype=torch.float64)
    for along in counts:
        result = result[..., None] * torch.tensor(along, dtype=torch.float64)
    return result.clamp_min(1)


def _each(value: Any, count: int) -> list[int]:
    if isinstance(value, int):
        return [value] * count
    values = list(value)
    return values * count if len(values) == 1 else values


def _lowest(dtype: torch.dtype) -> float | int:
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min
