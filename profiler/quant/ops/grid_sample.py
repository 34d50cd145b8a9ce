"""grid_sample: gathers at the positions of the grid, weighted elementwise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.errors import UnsupportedOpError
from profiler.quant.affine import round_half_even
from profiler.quant.ops.geometry import sizes_of
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.ops.same_scale import on_the_grid
from profiler.quant.qtensor import QTensor, handles, to_float, user_line

_NAMES = ("input", "grid", "mode", "padding_mode", "align_corners")
_MODES, _PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
_CUBIC = -0.75
_FAR = 2.0**40

Tap = tuple[Tensor, Tensor]


@handles("grid_sample")
def grid_sample(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Values of `input` at the real positions of `grid` (quantized or float), at the scale of `input`.

    Raises:
        UnsupportedOpError: an unknown mode or padding mode.
    """
    bound = {"mode": "bilinear", "padding_mode": "zeros", **dict(zip(_NAMES, args, strict=False)), **kwargs}
    source, grid = bound["input"], to_float(bound["grid"])
    mode, padding, align_corners = bound["mode"], bound["padding_mode"], bool(bound.get("align_corners"))
    if not isinstance(source, QTensor):
        return func(source, grid, mode, padding, align_corners)
    if mode not in _MODES or padding not in _PADDINGS:
        raise UnsupportedOpError(f"grid_sample with {mode!r}, {padding!r} is not implemented, at {user_line()}")
    return on_the_grid(
        source,
        lambda x: F.grid_sample(x, grid, mode, padding, align_corners),
        lambda x: sampled(x.double(), grid.detach(), mode, padding, align_corners),
    )


def sampled(x: Tensor, grid: Tensor, mode: str, padding: str, align_corners: bool) -> Tensor:
    """Samples of codes: elementwise float64 arithmetic in a fixed order, and gathers.

    Args:
        x: codes in float64, `[N, C, H, W]` or `[N, C, D, H, W]`.
        grid: real positions in -1..1, `[N, ..., 2 or 3]`, the last axis of x first.
        mode: "bilinear" (trilinear for volumes), "nearest" or "bicubic".
        padding: "zeros", "border" or "reflection".
        align_corners: whether -1 and 1 are the centres of the outermost values, or their outer edges.

    Returns:
        Weighted sums in float64, not rounded yet.
    """
    lengths = sizes_of(x)[2:]
    axes = [
        _taps(grid[..., len(lengths) - 1 - axis].double(), length, mode, padding, align_corners)
        for axis, length in enumerate(lengths)
    ]
    batch, channels = sizes_of(x)[:2]
    places = sizes_of(grid)[1:-1]
    flat = x.flatten(2)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for corner in itertools.product(*axes):
        position, weight = _combined(corner, lengths)
        index = position.flatten(1)[:, None].expand(batch, channels, math.prod(places))
        total = total + flat.gather(2, index).reshape(batch, channels, *places) * weight[:, None]
    return total


def _combined(corner: tuple[Tap, ...], lengths: tuple[int, ...]) -> Tap:
    """Index into the flattened axes, and the product of the weights."""
    position, weight = corner[0]
    for (index, factor), length in zip(corner[1:], lengths[1:], strict=True):
        position, weight = position * length + index, weight * factor
    return position, weight


def _taps(grid: Tensor, length: int, mode: str, padding: str, align_corners: bool) -> list[Tap]:
    """(index, weight) of each neighbour along one axis."""
    place = _in_steps(grid, length, align_corners)
    if mode == "bicubic":
        first = place.floor()
        weights = _cubic_weights(place - first)
        return [
            _tap(_inside(first + (k - 1), length, padding, align_corners), w, length) for k, w in enumerate(weights)
        ]
    place = _inside(place, length, padding, align_corners)
    if mode == "nearest":
        return [_tap(round_half_even(place), torch.ones_like(place), length)]
    first = place.floor()
    rest = place - first
    return [_tap(first, 1.0 - rest, length), _tap(first + 1.0, rest, length)]


def _in_steps(grid: Tensor, length: int, align_corners: bool) -> Tensor:
    """-1..1 in steps of the input, from 0."""
    steps = (grid + 1.0) * ((length - 1) / 2) if align_corners else ((grid + 1.0) * length - 1.0) / 2
    return torch.where(grid == grid, steps, -1.0).clamp(-_FAR, _FAR)  # NaN lies outside, as torch has it


def _inside(place: Tensor, length: int, padding: str, align_corners: bool) -> Tensor:
    """The place that padding reads instead; with zeros it stays outside."""
    if padding == "zeros":
        return place
    if padding == "reflection":
        low, high = (0.0, length - 1.0) if align_corners else (-0.5, length - 0.5)
        place = _reflected(place, low, high - low)
    return place.clamp(0.0, length - 1.0)


def _reflected(place: Tensor, low: float, span: float) -> Tensor:
    if span == 0:
        return torch.zeros_like(place)
    distance = (place - low).abs()
    flips = (distance / span).floor()
    rest = distance - flips * span
    is_even = (flips / 2).floor() * 2 == flips
    return torch.where(is_even, rest, span - rest) + low


def _tap(place: Tensor, weight: Tensor, length: int) -> Tap:
    """A whole place as an index, with weight 0 outside the input."""
    is_inside = (place >= 0.0) & (place <= length - 1.0)
    index = place.clamp(0.0, max(length - 1.0, 0.0)).to(torch.int64)
    return index, torch.where(is_inside, weight, 0.0)


def _cubic_weights(t: Tensor) -> list[Tensor]:
    """Weights of the four neighbours of a place `t` beyond the second.

    Source:
        Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.75 as in torch.
    """
    return [_outer_weight(t + 1.0), _inner_weight(t), _inner_weight(1.0 - t), _outer_weight(2.0 - t)]


def _inner_weight(d: Tensor) -> Tensor:
    return ((_CUBIC + 2.0) * d - (_CUBIC + 3.0)) * d * d + 1.0


def _outer_weight(d: Tensor) -> Tensor:
    return ((_CUBIC * d - 5.0 * _CUBIC) * d + 8.0 * _CUBIC) * d - 4.0 * _CUBIC


GRID_SAMPLE = register(
    OpSpec("grid_sample", Family.SCALE_KEEPING, functions=("grid_sample",),
           note="images and volumes, all modes and paddings; the grid quantized or float; rounded to the input's scale")
)  # fmt: skip
