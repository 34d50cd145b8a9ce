"""Comparisons, logic and positions: computed on real values, results are plain booleans or indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, handles, to_float, to_plain

_COMPARISONS = (
    "gt ge lt le eq ne greater greater_equal less less_equal not_equal isclose isnan isinf isfinite isneginf isposinf "
    "logical_and logical_or logical_xor logical_not signbit any all"
).split()
_POSITIONS = ("argmax", "argmin", "nonzero", "argwhere", "count_nonzero")


@handles(*_COMPARISONS)
def compare(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compare real values, `codes * scale` in float32; other operands may be numbers or float tensors."""
    return func(*to_float(args), **to_float(kwargs))


@handles(*_POSITIONS)
def locate(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions of the extremes, or of what is not 0, are those of the codes."""
    return func(*to_plain(args), **to_plain(kwargs))


@handles("long", "short", "byte", "char")
def cast(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Real values without their fraction, as a plain integer tensor."""
    return func(*to_float(args), **to_float(kwargs))


@handles("argsort")
def argsort(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions of the sorted values; equal values keep their order."""
    options = {**dict(zip(("input", "dim", "descending"), args, strict=False)), **kwargs, "stable": True}
    source = options.pop("input")
    codes = source.plain.to(torch.float32) if isinstance(source, QTensor) else source
    return torch.argsort(codes, **options)


COMPARE = register(
    OpSpec("compare", Family.INDEX, functions=tuple(_COMPARISONS),
           note="`<`, `==`, torch.isnan, torch.logical_and, ...: on real values, mixed with numbers and float tensors")
)  # fmt: skip
ARGMAX = register(
    OpSpec("argmax", Family.INDEX, functions=(*_POSITIONS, "argsort"),
           note="argmax, argmin, argsort, nonzero: of equal values the first")
)  # fmt: skip
CAST = register(
    OpSpec("cast", Family.INDEX, functions=("long", "short", "byte", "char"),
           note="`x.long()`, `x.to(torch.int64)`: real values without their fraction, plain integers")
)  # fmt: skip
