"""var, std, norm: exact integer sums of codes and of their squares, and correctly rounded float64 behind them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from profiler.errors import UnsupportedOpError
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.geometry import sizes_of
from profiler.quant.ops.lookup import finite_gradient
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, user_line
from profiler.quant.requantize import requantize


def var_codes(out: OutputQuant, input: QTensor, *args: Any, **kwargs: Any) -> QTensor:
    """Codes of a variance.

    Args:
        out: output scale and dtype.
        input: codes, any shape.
        args: `dim`, `unbiased`, `keepdim`, in torch's spellings; a lone bool is `unbiased`.
        kwargs: the rest by name; `correction` is what the number of elements is lessened by.

    Returns:
        Codes; 0 where there are no more elements than the correction.
    """
    steps = _variance(input, *_arguments(args, kwargs)).to(torch.float32)
    return out.wrap(requantize(steps, input.scale * input.scale / out.scale, out.info, is_whole=False))


def std_codes(out: OutputQuant, input: QTensor, *args: Any, **kwargs: Any) -> QTensor:
    """Codes of a standard deviation; arguments as in var_codes."""
    steps = torch.sqrt(_variance(input, *_arguments(args, kwargs))).to(torch.float32)
    return out.wrap(requantize(steps, input.scale / out.scale, out.info, is_whole=False))


def norm_codes(
    out: OutputQuant, input: QTensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> QTensor:
    """Codes of a vector norm.

    Args:
        out: output scale and dtype.
        input: codes, any shape.
        p: 2 ("fro"), 1, inf or -inf.
        dim: a number, several, or None for all.
        keepdim: whether the reduced dimensions stay, with size 1.
        dtype: has no meaning for codes.

    Raises:
        UnsupportedOpError: another p, or no elements for an extreme.
    """
    steps = _norm(input.plain.to(torch.int64), p, dim, keepdim)
    return out.wrap(requantize(steps.to(torch.float32), input.scale / out.scale, out.info, is_whole=False))


def _norm(x: Tensor, p: Any, dim: Any, keepdim: bool) -> Tensor:
    dims = _dims(x, dim)
    if p in ("fro", None, 2):
        return torch.sqrt((x * x).sum(dims, keepdim=keepdim).to(torch.float64))
    if p == 1:
        return x.abs().sum(dims, keepdim=keepdim)
    if p == math.inf:
        return x.abs().amax(dims, keepdim=keepdim)
    if p == -math.inf:
        return x.abs().amin(dims, keepdim=keepdim)
    raise UnsupportedOpError(
        f"norm with p={p!r}, called at {user_line()}, has no integer form; use 1, 2, inf or -inf, or set qconfig = None"
    )


def _variance(x: QTensor, dim: Any, correction: float, keepdim: bool) -> Tensor:
    """Variance in squared steps, float64.

    Both sums are exact in int64 and, below 2**53, in float64; for int16 beyond 2**23 elements the sum of squares is
    rounded once.
    """
    shape, dims = sizes_of(x), _dims(x, dim)
    count = math.prod(shape[d] for d in dims)
    codes = x.plain.to(torch.int64)
    total = codes.sum(dims, keepdim=keepdim).to(torch.float64)
    squares = (codes * codes).sum(dims, keepdim=keepdim).to(torch.float64)
    if count <= correction:
        return torch.zeros_like(total)
    return (squares - total * total / float(count)).clamp_min(0.0) / float(count - correction)


def _dims(x: Tensor, dim: Any) -> tuple[int, ...]:
    rank = len(sizes_of(x))
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return tuple(range(rank))
    return tuple(d % rank for d in ((dim,) if isinstance(dim, int) else dim)) if rank else ()


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, float, bool]:
    """dim, correction and keepdim of all spellings."""
    if args and isinstance(args[0], bool):
        given = dict(zip(("unbiased",), args, strict=False))
    else:
        given = dict(zip(("dim", "unbiased", "keepdim"), args, strict=False))
    given.update(kwargs)
    correction = given.get("correction")
    if correction is None:
        correction = int(given.get("unbiased", True))
    return given.get("dim"), correction, bool(given.get("keepdim", False))


def _var_float(input: Any, *args: Any, **kwargs: Any) -> Any:
    return torch.var(input, *args, **kwargs)


def _std_float(input: Any, *args: Any, **kwargs: Any) -> Any:
    return torch.std(finite_gradient(input), *args, **kwargs)


def _norm_float(input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    order = 2 if p in ("fro", None) else p
    return torch.linalg.vector_norm(finite_gradient(input), order, dim=dim, keepdim=keepdim, dtype=dtype)


def _vector_norm_codes(
    out: OutputQuant, x: QTensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> QTensor:
    return norm_codes(out, x, ord, dim, keepdim, dtype)


def _vector_norm_float(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return torch.linalg.vector_norm(finite_gradient(x), ord, dim=dim, keepdim=keepdim, dtype=dtype)


VAR = register(
    OpSpec("var", Family.FUNCTION, functions=("var",), float_fn=_var_float, integer_fn=var_codes, saturates=True,
           note="over any dimensions; too few elements give 0")
)  # fmt: skip
STD = register(
    OpSpec("std", Family.FUNCTION, functions=("std",), float_fn=_std_float, integer_fn=std_codes, saturates=True,
           note="as var")
)  # fmt: skip
NORM = register(
    OpSpec("norm", Family.FUNCTION, functions=("norm",), float_fn=_norm_float, integer_fn=norm_codes,
           note="torch.norm, Tensor.norm: p of 1, 2, inf, -inf over any dimensions")
)  # fmt: skip
VECTOR_NORM = register(
    OpSpec("linalg_vector_norm", Family.FUNCTION, functions=("linalg_vector_norm",), float_fn=_vector_norm_float,
           integer_fn=_vector_norm_codes, note="torch.linalg.vector_norm: as norm")
)  # fmt: skip
