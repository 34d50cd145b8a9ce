"""interpolate and the Upsample modules: gathers, or exact weighted sums of codes along one axis after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant.affine import round_half_even
from profiler.quant.ops.geometry import outer_product, positions, product_along, sizes_of, weights
from profiler.quant.ops.pool import adaptive_windows, window_sums
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.ops.same_scale import on_the_grid
from profiler.quant.qtensor import QTensor, handles, to_float, user_line
from profiler.quant.requantize import FLOAT64_EXACT, carrier_dtype
from profiler.quant.tracing import not_traced

_NEAREST = ("nearest", "nearest-exact")
_LINEAR = ("linear", "bilinear", "trilinear")
# Positions up to here are exact in float32, in which torch's nearest picks them.
_LONGEST = 2**24
# Weights with at most so many binary places count as exact; others are rounded to no fewer places than those of the
# largest code and these, so that no sum is off by more than 2**-6 of a code.
_EXACT_LIMIT, _PLACES_BEYOND_CODES = 23, 8


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
        picked, dim = _nearest_positions(length, size, factor, arguments["mode"]), position + 2
        times = len(picked) // length
        if times and picked == tuple(i // times for i in range(length * times)):  # whole factors copy, faster
            shape = sizes_of(x)
            copies = x.unsqueeze(dim + 1).expand(*shape[: dim + 1], times, *shape[dim + 1 :])
            x = copies.reshape(*shape[:dim], length * times, *shape[dim + 1 :])
        else:
            x = x.index_select(dim, positions(picked, x))
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
    """Weighted sums along each axis; the weights are whole multiples of a power of two, so that all sums are exact.

    float32 carries codes and weights where it holds them exactly, such as int8 codes at twice the size, else float64;
    where that leaves the weights too few places (int16 at odd sizes) they stay as they are, in elementwise products
    and sums.
    """
    options = (arguments["mode"] == "bicubic", bool(arguments["align_corners"]), arguments["antialias"])
    axes = [_weights_along(*axis, *options) for axis in _axes(x, arguments)]
    largest = -torch.iinfo(x.dtype).min
    bits, dtype = _bits_that_fit(axes, largest)
    y = x.to(dtype)
    enough = math.log2(largest) + _PLACES_BEYOND_CODES
    if any(bits_of < min(w.bits, enough) for w, bits_of in zip(axes, bits, strict=True)):
        for position, w in enumerate(axes):
            y = _weighted_elementwise(y, position + 2, w)
        return y
    for position, (w, bits_of) in enumerate(zip(axes, bits, strict=True)):
        y = product_along(y, position + 2, _whole_weights(w, bits_of, y))
    return y * 2.0 ** -sum(bits)


@dataclass(frozen=True)
class _Weights:
    """Weights along one axis.

    Attributes:
        places: which inputs `[taps][outputs]`.
        factors: their weights `[taps][outputs]`.
        length: how many inputs there are.
        bits: how many binary places write all weights exactly; `_EXACT_LIMIT` + 1 where more are needed.
        gain: the largest sum of magnitudes of the weights of one output.
    """

    places: tuple[tuple[int, ...], ...]
    factors: tuple[tuple[float, ...], ...]
    length: int
    bits: int
    gain: float


def _bits_that_fit(axes: list[_Weights], largest_code: int) -> tuple[list[int], torch.dtype]:
    """Binary places of each axis' weights, and the type in which every sum of products is exact."""
    gain = largest_code * math.prod(w.gain + 2.0**-10 for w in axes)  # what rounding adds to a gain stays below that
    exact = [w.bits for w in axes]
    if all(b <= _EXACT_LIMIT for b in exact) and carrier_dtype(gain * 2.0 ** sum(exact)) is torch.float32:
        return exact, torch.float32
    room = (math.log2(FLOAT64_EXACT) - math.log2(gain)) / max(len(axes), 1)
    return [min(b, math.floor(room)) for b in exact], torch.float64


@not_traced
def _whole_weights(w: _Weights, bits: int, like: Tensor) -> Tensor:
    """The weights times `2**bits`, rounded: `[inputs, outputs]`."""
    num_outputs = len(w.places[0]) if w.places else 0
    matrix = torch.zeros(w.length, num_outputs, dtype=torch.float64, device=like.device)
    outputs = torch.arange(num_outputs, device=like.device)
    for places, factors in zip(w.places, w.factors, strict=True):
        matrix[positions(places, like), outputs] += weights(factors, like)
    return round_half_even(matrix * 2.0**bits).to(like.dtype)


def _weighted_elementwise(x: Tensor, dim: int, w: _Weights) -> Tensor:
    shape = [-1 if d == dim else 1 for d in range(x.dim())]
    terms = [
        x.index_select(dim, positions(places, x)) * weights(factors, x).view(shape)
        for places, factors in zip(w.places, w.factors, strict=True)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@not_traced
@lru_cache(maxsize=256)
@torch.no_grad()
def _weights_along(
    length: int, size: int | None, factor: float | None, is_cubic: bool, align_corners: bool, antialias: bool
) -> _Weights:
    """Torch's own weights along one axis, read off an identity matrix."""
    mode = "bicubic" if is_cubic else "bilinear"
    sizes: dict[str, Any] = {"size": (1, size)} if size is not None else {"scale_factor": (1.0, factor)}
    identity = torch.eye(length, dtype=torch.float64).view(1, length, 1, length)
    matrix = F.interpolate(identity, **sizes, mode=mode, align_corners=align_corners, antialias=antialias)[0, :, 0].T
    num_taps = max(int((matrix != 0).sum(1).max()), 1)
    places = (matrix != 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :num_taps]
    factors = matrix.gather(1, places)
    scaled = [factors * 2.0**b for b in range(_EXACT_LIMIT + 1)]
    bits = next((b for b, f in enumerate(scaled) if torch.equal(f, f.round())), _EXACT_LIMIT + 1)
    gain = float(matrix.abs().sum(1).max())
    return _Weights(tuple(map(tuple, places.T.tolist())), tuple(map(tuple, factors.T.tolist())), length, bits, gain)


INTERPOLATE = register(
    OpSpec("interpolate", Family.SCALE_KEEPING,
           functions=("interpolate", "upsample", "upsample_nearest", "upsample_bilinear"),
           modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
           note="all modes, align_corners, antialias; rounded to the input's scale")
)  # fmt: skip
