"""maximum, minimum of two tensors with an own scale; max, min, topk, sort of one keep the scale and give indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from profiler.errors import UnsupportedOpError
from profiler.quant.naming import canonical_function_name
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.operands import codes_of_steps, rescaled
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, handles, user_line

_SELECTING = ("amax", "amin", "aminmax", "cummax", "cummin")


def maximum_codes(out: OutputQuant, input: Any, other: Any) -> QTensor:
    """Codes of the larger operand, elementwise; both are rescaled to the output and rounded once.

    Args:
        out: output scale and dtype.
        input: codes, an integer tensor or a 0-d tensor.
        other: the same, broadcasts with input.
    """
    return codes_of_steps(out, torch.maximum(rescaled(out, input), rescaled(out, other)))


def minimum_codes(out: OutputQuant, input: Any, other: Any) -> QTensor:
    """Codes of the smaller operand; as maximum_codes."""
    return codes_of_steps(out, torch.minimum(rescaled(out, input), rescaled(out, other)))


def reduces(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call of max or min has one operand (`x.max()`, `x.max(1)`) and no other tensor beside it.

    Args:
        args: positional arguments, tensors or nodes of a graph.
        kwargs: keyword arguments.
    """
    if "other" in kwargs:
        return False
    return len(args) < 2 or isinstance(args[1], (int, tuple, list))


@handles("max", "min", *_SELECTING)
def select_values(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Values keep the scale of the tensor they are selected from, indices are plain.

    Raises:
        UnsupportedOpError: max or min of two operands, where no generated module gives their result a scale.
    """
    name = canonical_function_name(func)
    if name in ("max", "min") and not reduces(args, kwargs):
        raise UnsupportedOpError(
            f"{name} of two operands, called at {user_line()}: nothing gives the result a scale; put a DeQuantStub "
            "before it"
        )
    source, args, kwargs = _split(args, kwargs)
    return _selected(source, lambda x: func(x, *args, **kwargs))


@handles("topk")
def topk(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The k largest or smallest values, sorted; of equal ones those of lower index."""
    source, args, kwargs = _split(args, kwargs)
    return _selected(source, lambda x: _first_sorted(x, *args, **kwargs))


@handles("kthvalue", "median")
def ranked(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The k-th smallest value, or the lower median; of equal values the one of lower index."""
    source, args, kwargs = _split(args, kwargs)
    if canonical_function_name(func) == "kthvalue":
        return _selected(source, lambda x: _kth_smallest(x, *args, **kwargs))
    if not args and not kwargs:
        return _selected(source, lambda x: _kth_smallest(x.reshape(-1), (x.numel() + 1) // 2)[0])
    return _selected(source, lambda x: _median(x, *args, **kwargs))


@handles("sort")
def sort(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sorted values and their indices; equal values keep their order."""
    source, args, kwargs = _split(args, kwargs)
    options = {**dict(zip(("dim", "descending"), args, strict=False)), **kwargs, "stable": True}
    return _selected(source, lambda x: torch.sort(x, **options))


def _first_sorted(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """torch.topk with a rule for ties."""
    if x.dim() == 0:
        return torch.topk(x, k, dim, largest, sorted)
    values, indices = torch.sort(x, dim=dim, descending=largest, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))


def _median(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    return _kth_smallest(x, (x.shape[dim] + 1) // 2, dim, keepdim)


def _kth_smallest(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    values, indices = (t.narrow(dim, k - 1, 1) for t in torch.sort(x, dim=dim, stable=True))
    if not keepdim:
        values, indices = values.squeeze(dim), indices.squeeze(dim)
    return torch.return_types.kthvalue((values, indices))


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The tensor that values are selected from, and the other arguments."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["input"], (), {name: value for name, value in kwargs.items() if name != "input"}


def _selected(source: QTensor, select: Callable[[Tensor], Any]) -> Any:
    """Select on float32, which carries codes exactly: ties then fall as they do for the values of a prepared model."""
    dtype = source.plain.dtype
    result = select(source.plain.to(torch.float32) if source.holds_codes else source.plain)
    return tree_map(lambda t: source.like(t.to(dtype)) if t.is_floating_point() else t, result)


def _maximum_float(input: Any, *args: Any, **kwargs: Any) -> Any:
    return (
        torch.max(input, *args, **kwargs) if reduces((input, *args), kwargs) else torch.maximum(input, *args, **kwargs)
    )


def _minimum_float(input: Any, *args: Any, **kwargs: Any) -> Any:
    return (
        torch.min(input, *args, **kwargs) if reduces((input, *args), kwargs) else torch.minimum(input, *args, **kwargs)
    )


MAXIMUM = register(
    OpSpec("maximum", Family.FUNCTION, functions=("maximum", "fmax", "max"), float_fn=_maximum_float,
           integer_fn=maximum_codes, keeps_scale=reduces,
           note="torch.maximum, torch.max of two tensors; torch.max of one, over all or a dim, keeps the scale")
)  # fmt: skip
MINIMUM = register(
    OpSpec("minimum", Family.FUNCTION, functions=("minimum", "fmin", "min"), float_fn=_minimum_float,
           integer_fn=minimum_codes, keeps_scale=reduces, note="as maximum")
)  # fmt: skip
EXTREMES = register(
    OpSpec("extremes", Family.SCALE_KEEPING, functions=(*_SELECTING, "kthvalue", "median"),
           note="torch.amax, amin, aminmax, cummax, cummin, kthvalue, median: values keep the scale, indices are plain")
)  # fmt: skip
TOPK = register(
    OpSpec("topk", Family.SCALE_KEEPING, functions=("topk", "sort"),
           note="values keep the scale, indices are plain; of equal values the lower index comes first")
)  # fmt: skip
