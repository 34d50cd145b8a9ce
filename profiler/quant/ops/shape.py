"""Ops that move, drop or select codes without changing their scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.errors import UnsupportedOpError
from profiler.quant.affine import fake_quantize, quantize
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, handles, to_float, to_plain, user_line
from profiler.quant.requantize import requantize

_SHAPE = (
    "reshape view flatten unflatten ravel permute transpose movedim moveaxis swapaxes swapdims squeeze unsqueeze "
    "expand expand_as broadcast_to repeat tile repeat_interleave getitem narrow select split split_with_sizes "
    "tensor_split hsplit vsplit dsplit chunk unbind contiguous clone detach flip fliplr flipud rot90 roll "
    "T mT H mH t data adjoint view_as reshape_as diagonal tril triu requires_grad_"
).split()
_POOL = "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d".split()
_POOL_INDICES = [f"{name}_with_indices" for name in _POOL]
_CASTS = "to type float half double type_as".split()
_DROPOUT = "dropout dropout2d feature_dropout alpha_dropout".split()


@handles("relu", *_SHAPE, *_DROPOUT)
def keep_scale(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run on the values or codes and give each tensor result the scale of the tensor that is moved or selected.

    Where only another argument is quantized (the pattern of `bias.expand_as(x)`) the result stays float.

    Raises:
        UnsupportedOpError: the data is to be read as another dtype (`x.view(torch.uint8)`).
    """
    source = _source(args, kwargs)
    if any(isinstance(value, torch.dtype) for value in (*args[1:], *kwargs.values())):
        raise UnsupportedOpError(
            f"{func.__name__} with a dtype is not implemented for QTensor, at {user_line()}: the bits of a code mean "
            "nothing without its scale; put a DeQuantStub before it"
        )
    if source is not None and source.holds_codes and func.__name__ in ("view", "view_as"):
        args = (source.plain.contiguous(), *args[1:])  # images of codes lie channels last, which no view can flatten
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


@handles(*_POOL_INDICES)
def max_pool_with_indices(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Largest values at the scale of the input, and plain int64 indices; float32 carries codes exactly."""
    source = _source(args, kwargs)
    if source is None:
        return func(*to_float(args), **to_float(kwargs))
    x = source.plain
    carried = x.to(torch.float32) if source.holds_codes else x
    values, indices = func(*tree_map(lambda v: carried if v is source else v, args),
                           **{k: carried if v is source else v for k, v in kwargs.items()})  # fmt: skip
    return source.like(values.to(x.dtype)), indices


@handles("setitem")
def set_item(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """`x[index] = value` in place: the value is brought to the scale of x; in a float x real values are written.

    A quantized value is requantized where its scale differs, a number is rounded to a code.

    Raises:
        UnsupportedOpError: the value is a float tensor and x is quantized.
    """
    target, index, value = args
    index = to_plain(index)
    if not isinstance(target, QTensor):
        func(target, index, to_float(value))
        return
    if isinstance(value, Tensor) and not isinstance(value, QTensor) and value.dim() > 0:
        raise UnsupportedOpError(
            f"a float tensor is written into a QTensor at {user_line()}; put a QuantStub before the value"
        )
    func(target.plain, index, _at_scale_of(target, value))


def _at_scale_of(target: QTensor, value: Any) -> Tensor:
    """A quantized value or number as the codes, or in a prepared model the values, of another tensor's scale."""
    if isinstance(value, QTensor) and value.holds_codes and target.holds_codes:
        if value.qdtype == target.qdtype and torch.equal(value.scale, target.scale):
            return value.plain
        return requantize(value.plain, value.scale / target.scale, target.info)
    real = torch.as_tensor(to_float(value), dtype=torch.float32, device=target.scale.device)
    if target.holds_codes:
        return quantize(real, target.scale, target.info)
    return fake_quantize(real, target.scale, target.info) if target.is_rounded else real


@handles(*_CASTS, "cpu", "cuda")
def move(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Moving keeps the scale, and so does a change to another float dtype: a code stands for the same real value.

    Values in a prepared model stay float32, a converted model's codes keep their integer dtype. A cast to integers or
    bool reads real values and gives a plain tensor.
    """
    source = _source(args, kwargs)
    # float_mask.type_as(x): what x stands for is float32, also where it holds codes; float(x) is a number
    if source is None or func.__name__ == "__float__" or _asks_for_integers(func, args[1:], kwargs):
        return func(*to_float(args), **to_float(kwargs))
    moved = func(*to_plain(args), **to_plain(kwargs))
    if not isinstance(moved, Tensor):  # x.type() without an argument asks for the name of the type
        return moved
    data = moved.to(source.plain.dtype)
    result = source.like(data)
    result.scale = source.scale.to(data.device)
    return result


def _asks_for_integers(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `x.to(torch.int64)`, `x.type(...)` or `x.to(indices)` asks for no float dtype, or `x.type()` a name."""
    if func.__name__ == "type" and not args and not kwargs:
        return True
    for value in to_float([*args, *kwargs.values()]):
        named = getattr(torch, value.rpartition(".")[2], None) if isinstance(value, str) else value
        dtype = getattr(named, "dtype", named)
        if isinstance(dtype, torch.dtype):
            return not dtype.is_floating_point
    return False


def _source(args: tuple[Any, ...], kwargs: dict[str, Any]) -> QTensor | None:
    """The tensor that a function moves, or None where that one is not quantized."""
    first = args[0] if args else kwargs.get("input")
    return first if isinstance(first, QTensor) else None


SHAPE = register(
    OpSpec("shape", Family.SCALE_KEEPING, functions=(*_SHAPE, "setitem", *_CASTS, "cpu", "cuda"),
           modules=(nn.Flatten, nn.Unflatten, nn.Identity),
           note="reshape, permute, slice, split, ...")
)  # fmt: skip
MAX_POOL = register(
    OpSpec("max_pool", Family.SCALE_KEEPING, functions=(*_POOL, *_POOL_INDICES),
           modules=(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
                    nn.AdaptiveMaxPool3d), note="max of codes; indices are plain")
)  # fmt: skip
DROPOUT = register(
    OpSpec("dropout", Family.SCALE_KEEPING, functions=tuple(_DROPOUT), modules=(nn.Dropout, nn.Dropout2d),
           note="nothing in eval")
)  # fmt: skip
