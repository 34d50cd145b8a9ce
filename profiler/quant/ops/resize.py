"""interpolate and the Upsample modules: gathers, or short weighted sums of codes along one axis after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant.ops.gemm import not_traced
from profiler.quant.ops.geometry import outer_product, positions, sizes_of, weights
from profiler.quant.ops.pool import adaptive_windows, window_sums
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.ops.same_scale import on_the_grid
from profiler.quant.qtensor import QTensor, handles, to_float, user_line

_NEAREST = ("nearest", "nearest-exact")
_LINEAR = ("linear", "bilinear", "trilinear")
# Positions up to here are exact in float32, in which torch's nearest picks them.
_LONGEST = 2**24


@handles("interpolate", "upsample", "upsample_nearest", "upsample_bilinear")
def interpolate(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Resize on the values or codes; the scale stays.

    Raises:
        UnsupportedOpError: an unknown mode.
    """
    arguments = _arguments(func.__name__, *args, **kwargs)
    source = arguments.pop("input")
    if not isinstance(source, QTensor):
        return func(*to_float(args), **to_float(kwargs))
    mode = arguments["mode"]
    if mode in _NEAREST:
        return source.like(_resized_nearest(source.plain, arguments))
    if mode not in (*_LINEAR, "bicubic", "area"):
        raise UnsupportedOpError(f"interpolate with mode {mode!r} is not implemented for QTensor, at {user_line()}")
    exact = _resized_area if mode == "area" else _resized_weighted
    return on_the_grid(source, lambda x: F.interpolate(x, **arguments), lambda x: exact(x, arguments))


def _arguments(
    name: str,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> dict[str, Any]:
    """Arguments of F.interpolate, also where one of its older names was called."""
    if name == "upsample_nearest":
        mode = "nearest"
    if name == "upsample_bilinear":
        mode, align_corners = "bilinear", True
    return {
        "input": input, "size": size, "scale_factor": scale_factor, "mode": mode, "align_corners": align_corners,
        "recompute_scale_factor": recompute_scale_factor, "antialias": antialias,
    }  # fmt: skip


def _axes(x: Tensor, arguments: dict[str, Any]) -> list[tuple[int, Any, Any]]:
    """(length, new size, scale factor) of each spatial axis; one of the last two is None."""
    lengths = list(sizes_of(x)[2:])
    sizes, factors = (_per_axis(arguments[key], len(lengths)) for key in ("size", "scale_factor"))
    if factors[0] is not None and arguments["recompute_scale_factor"]:
        sizes, factors = [int(n * f) for n, f in zip(lengths, factors, strict=True)], [None] * len(lengths)
    return list(zip(lengths, sizes, factors, strict=True))


def _per_axis(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value] * count


def _resized_nearest(x: Tensor, arguments: dict[str, Any]) -> Tensor:
    for position, (length, size, factor) in enumerate(_axes(x, arguments)):
        picked = _nearest_positions(length, size, factor, arguments["mode"])
        x = x.index_select(position + 2, positions(picked, x))
    return x


@not_traced
@lru_cache(maxsize=256)
def _nearest_positions(length: int, size: int | None, factor: float | None, mode: str) -> tuple[int, ...]:
    """Which input each output takes: torch's own choice, read off a ramp of positions."""
    if length >= _LONGEST:
        raise UnsupportedOpError(f"interpolate: an axis of {length} is too long; expected less than {_LONGEST}")
    ramp = torch.arange(length, dtype=torch.float32).view(1, 1, -1)
    return tuple(int(p) for p in F.interpolate(ramp, size=size, scale_factor=factor, mode=mode).flatten().tolist())


def _resized_area(x: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Window means: exact sums, divided once."""
    axes = _axes(x, arguments)
    windows = [adaptive_windows(n, int(n * factor) if size is None else size) for n, size, factor in axes]
    return window_sums(x, windows).double() / outer_product([window.sizes for window in windows], x)


def _resized_weighted(x: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Weighted sums of a few neighbours along each axis: elementwise float64 products and sums in a fixed order."""
    options = (arguments["mode"] == "bicubic", bool(arguments["align_corners"]), arguments["antialias"])
    for position, axis in enumerate(_axes(x, arguments)):
        x = _weighted_along(x, position + 2, *_neighbours(*axis, *options))
    return x


def _weighted_along(
    x: Tensor, dim: int, places: tuple[tuple[int, ...], ...], factors: tuple[tuple[float, ...], ...]
) -> Tensor:
    shape = [-1 if d == dim else 1 for d in range(x.dim())]
    terms = [
        x.index_select(dim, positions(place, x)) * weights(factor, x).view(shape)
        for place, factor in zip(places, factors, strict=True)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@not_traced
@lru_cache(maxsize=256)
@torch.no_grad()
def _neighbours(
    length: int, size: int | None, factor: float | None, is_cubic: bool, align_corners: bool, antialias: bool
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]]:
    """Positions and weights `[taps][outputs]` along one axis: torch's own weights, read off an identity matrix."""
    mode = "bicubic" if is_cubic else "bilinear"
    sizes: dict[str, Any] = {"size": (1, size)} if size is not None else {"scale_factor": (1.0, factor)}
    identity = torch.eye(length, dtype=torch.float64).view(1, length, 1, length)
    matrix = F.interpolate(identity, **sizes, mode=mode, align_corners=align_corners, antialias=antialias)[0, :, 0].T
    num_taps = max(int((matrix != 0).sum(1).max()), 1) if matrix.numel() else 1
    places = (matrix != 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :num_taps]
    factors = matrix.gather(1, places)
    return tuple(map(tuple, places.T.tolist())), tuple(map(tuple, factors.T.tolist()))


INTERPOLATE = register(
    OpSpec("interpolate", Family.SCALE_KEEPING,
           functions=("interpolate", "upsample", "upsample_nearest", "upsample_bilinear"),
           modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
           note="all modes, align_corners, antialias; rounded to the input's scale")
)  # fmt: skip
