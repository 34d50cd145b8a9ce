"""Ops that move, drop or select codes without changing their scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.errors import UnsupportedOpError
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, handles, to_float, to_plain, user_line

_SHAPE = (
    "reshape view flatten unflatten permute transpose movedim swapaxes squeeze unsqueeze expand expand_as "
    "repeat getitem "
    "narrow select split chunk unbind contiguous clone detach flip roll T mT view_as reshape_as t tile requires_grad_"
).split()
_POOL = "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d".split()
_DROPOUT = "dropout dropout2d feature_dropout alpha_dropout".split()


@handles("relu", "max_pool2d", *_SHAPE, *_DROPOUT)
def keep_scale(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run on the values or codes and give each tensor result the scale of the tensor that is moved or selected.

    Where only another argument is quantized (the pattern of `bias.expand_as(x)`) the result stays float.
    """
    source = _source(args, kwargs)
    result = func(*to_plain(args), **to_plain(kwargs))
    if source is None:
        return result
    return tree_map(lambda t: source.like(t) if isinstance(t, Tensor) else t, result)


@handles(*(name for name in _POOL if name != "max_pool2d"))
def max_pool(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Max pools that torch has for float only: float32 carries int8 and int16 codes exactly."""
    source = _source(args, kwargs)
    if source is None or not source.holds_codes:
        return keep_scale(func, args, kwargs)
    carried = source.like(source.plain.to(torch.float32))
    result = keep_scale(func, *tree_map(lambda v: carried if v is source else v, (args, kwargs)))
    return source.like(result.plain.to(source.plain.dtype))


@handles("pad")
def pad(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Zero, reflect, replicate and circular padding keep the scale.

    Raises:
        UnsupportedOpError: padding with another value than 0.
    """
    value = kwargs.get("value", args[3] if len(args) > 3 else None)
    if value:
        raise UnsupportedOpError(f"pad with value {value} is not implemented for QTensor, at {user_line()}; pad with 0")
    return keep_scale(func, args, kwargs)


@handles("to", "type", "float", "half", "double", "cpu", "cuda", "type_as")
def move(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Moving keeps the scale; a change of dtype has no meaning for a quantized value, so real values come out.

    Values in a prepared model are float already; a converted model's codes keep their integer dtype.
    """
    source = _source(args, kwargs)
    if source is None:  # float_mask.type_as(x): what x stands for is float32, also where it holds codes
        return func(*to_float(args), **to_float(kwargs))
    moved = func(*to_plain(args), **to_plain(kwargs))
    if not isinstance(moved, Tensor):  # x.type() without an argument asks for the name of the type
        return moved
    data = moved.to(source.plain.dtype)
    return QTensor.wrap(data, source.scale.to(data.device), source.qdtype, source.ch_axis, source.is_rounded)


def _source(args: tuple[Any, ...], kwargs: dict[str, Any]) -> QTensor | None:
    """The tensor that a function moves, or None where that one is not quantized."""
    first = args[0] if args else kwargs.get("input")
    return first if isinstance(first, QTensor) else None


SHAPE = register(
    OpSpec("shape", Family.SCALE_KEEPING, functions=(*_SHAPE, "pad", "to", "type", "float", "cpu", "cuda"),
           modules=(nn.Flatten, nn.Unflatten, nn.Identity, nn.ZeroPad2d),
           note="reshape, permute, slice, split, pad with zeros, ...")
)  # fmt: skip
MAX_POOL = register(
    OpSpec("max_pool", Family.SCALE_KEEPING, functions=tuple(_POOL),
           modules=(nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d), note="max of codes")
)  # fmt: skip
DROPOUT = register(
    OpSpec("dropout", Family.SCALE_KEEPING, functions=tuple(_DROPOUT), modules=(nn.Dropout, nn.Dropout2d),
           note="nothing in eval")
)  # fmt: skip
