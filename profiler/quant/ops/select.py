"""where, masked_fill, gather: choose between values, by a mask or by indices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import TracerWarning

from profiler.errors import UnsupportedOpError
from profiler.quant.affine import qinfo, qint8, qint16, quantize
from profiler.quant.ops.functional import OutputQuant, overwrite
from profiler.quant.ops.operands import as_float32, codes_of_steps, rescaled
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.ops.shape import keep_scale
from profiler.quant.qtensor import QTensor, handles, to_float, user_line

_BY_INDEX = ("gather", "index_select", "take_along_dim", "take", "masked_select")

handles(*_BY_INDEX)(keep_scale)


@handles("masked_fill")
def masked_fill(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tensor with a number where the mask is true; see `fill`."""
    bound = {**dict(zip(("input", "mask", "value"), args, strict=False)), **kwargs}
    result = fill(bound["input"], bound["mask"], bound["value"])
    if func.__name__.endswith("_") and isinstance(result, QTensor):
        _overwrite(bound["input"], result)
    return result


def _overwrite(target: QTensor, result: QTensor) -> None:
    """Also where int8 codes become int16: the target then has new memory, and views of it keep the old one."""
    if overwrite(target, result):
        return
    with torch._C.DisableTorchFunction():
        target.data = result.plain
    target.qdtype = result.qdtype


def fill(x: Any, mask: Tensor, value: Any) -> Any:
    """The tensor x with a number where the mask is true, at the scale of x, in a prepared and a converted model alike.

    The number is rounded to a code. One that lies outside the int8 range, such as an attention mask's -1e9 or -inf,
    makes the result int16 at the same scale, so that neither x loses resolution nor the number comes near x; beyond
    the int16 range it saturates.

    Args:
        x: quantized tensor; a float tensor stays float.
        mask: bool, broadcasts with x.
        value: number or 0-d tensor.
    """
    number = as_float32(to_float(value), x)
    if not isinstance(x, QTensor):
        return torch.masked_fill(x, mask, number)
    wide = quantize(number, x.scale, qinfo(qint16))
    with warnings.catch_warnings():  # the choice depends on scale and number alone, which are constants of a trace
        warnings.simplefilter("ignore", TracerWarning)
        fits = x.qdtype != qint8 or bool(wide == quantize(number, x.scale, x.info))
    code = wide.clamp(x.info.quant_min, x.info.quant_max) if fits else wide
    qdtype = x.qdtype if fits else qint16
    if x.holds_codes:
        dtype = qinfo(qdtype).torch_dtype
        data = torch.masked_fill(x.plain.to(dtype), mask, code.to(dtype))
    else:
        data = torch.masked_fill(x.plain, mask, code.to(torch.float32) * x.scale)
    filled = x.like(data)
    filled.qdtype = qdtype
    return filled


@handles("where")
def where(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A choice between a quantized tensor and a number, see `fill`.

    Raises:
        UnsupportedOpError: two tensors, where no generated module gives their result a scale.
    """
    if not fills(args, kwargs):
        raise UnsupportedOpError(
            f"where of two tensors, called at {user_line()}: nothing gives the result a scale; put a DeQuantStub "
            "before it"
        )
    return _where_float(*args, **kwargs)


def where_codes(out: OutputQuant, *args: Any, **kwargs: Any) -> QTensor:
    """Codes of torch.where(condition, input, other), and of `input.where(condition, other)`.

    Both operands are rescaled to the output and rounded once.
    """
    condition, chosen, other = operands_of_where(args, kwargs)
    return codes_of_steps(out, torch.where(condition, rescaled(out, chosen), rescaled(out, other)))


def operands_of_where(args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Condition, value where it is true, value where it is false, of both spellings.

    Args:
        args: `(condition, input, other)`, or `(input, condition, other)` of the method, whose second is a bool tensor.
        kwargs: the rest by name.
    """
    positional = list(args)
    if "condition" in kwargs:
        positional.insert(0, kwargs["condition"])
    elif not _is_mask(positional[0]) and _is_mask(positional[1]):
        positional[:2] = positional[1::-1]
    positional += [kwargs[name] for name in ("input", "other") if name in kwargs]
    condition, chosen, other = positional
    return condition, chosen, other


def fills(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call of where chooses between a tensor and a number: it then is a masked_fill and keeps the scale.

    Args:
        args: positional arguments, tensors or nodes of a graph.
        kwargs: keyword arguments.
    """
    values = [*args, *(kwargs[name] for name in ("input", "other") if name in kwargs)]
    return any(isinstance(v, (int, float)) or _is_number(v) for v in values)


def _is_number(value: Any) -> bool:
    is_plain = isinstance(value, Tensor) and not isinstance(value, QTensor)
    return is_plain and value.dim() == 0 and value.dtype != torch.bool


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bool


def _where_float(*args: Any, **kwargs: Any) -> Any:
    condition, chosen, other = operands_of_where(args, kwargs)
    if isinstance(chosen, QTensor):
        return fill(chosen, ~condition, other)
    if isinstance(other, QTensor):
        return fill(other, condition, chosen)
    return torch.where(condition, chosen, other)


WHERE = register(
    OpSpec("where", Family.FUNCTION, functions=("where",), float_fn=_where_float, integer_fn=where_codes,
           keeps_scale=fills, note="two tensors: own scale; a tensor and a number: as masked_fill")
)  # fmt: skip
MASKED_FILL = register(
    OpSpec("masked_fill", Family.SCALE_KEEPING, functions=("masked_fill",),
           note="a number outside the int8 range (-1e9, -inf) makes the result int16 at the input's scale")
)  # fmt: skip
GATHER = register(
    OpSpec("gather", Family.SCALE_KEEPING, functions=_BY_INDEX, note="codes are moved; indices and masks are plain")
)  # fmt: skip
