"""index_add, scatter_add, scatter_reduce: exact integer sums and extremes at indices, requantized once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.quant.affine import quantize
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import quantized_output
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.geometry import sizes_of
from profiler.quant.ops.operands import codes_of_steps, rescaled
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor


def scatter_add_codes(out: OutputQuant, input: Any, dim: int, index: Tensor, src: Any, *, alpha: float = 1) -> QTensor:
    """Codes of `input` with the elements of `alpha * src` added at the indices.

    Args:
        out: output scale and dtype.
        input: QTensor of codes, what is added to; a float tensor (new zeros, mostly) counts with its real values.
        dim: the dimension that the indices run over.
        index: int64, as many dimensions as src and nowhere larger.
        src: QTensor of codes, what is added.
        alpha: factor of `src`.

    Returns:
        `clamp(round(x_q * (s_x / s_y) + sum(src_q) * (alpha * s_src / s_y)))`: each sum is exact in int64 and rounded
        to float32 once, products and sum in float32, one rounding to a code.
    """
    target = input.plain if isinstance(input, QTensor) else input
    sums = torch.zeros_like(target, dtype=torch.int64).scatter_add(dim, index, src.plain.to(torch.int64))
    return codes_of_steps(out, rescaled(out, input) + sums.to(torch.float32) * (src.scale * alpha / out.scale))


def index_add_codes(out: OutputQuant, input: Any, dim: int, index: Tensor, source: Any, *, alpha: float = 1) -> QTensor:
    """Codes of `input` with the slices of `alpha * source` added at the indices of one dimension.

    Args:
        out: output scale and dtype.
        input: QTensor of codes, what is added to; a float tensor (new zeros, mostly) counts with its real values.
        dim: the dimension that the indices run over.
        index: one int64 or int32 number for each slice of source.
        source: QTensor of codes, what is added.
        alpha: factor of `source`.
    """
    shape = sizes_of(source)
    if not shape:
        return scatter_add_codes(out, input, dim, index.reshape(()).to(torch.int64), source, alpha=alpha)
    row = [1] * len(shape)
    row[dim] = -1
    places = index.to(torch.int64).reshape(row).expand(shape)
    return scatter_add_codes(out, input, dim, places, source, alpha=alpha)


def scatter_reduce_codes(
    out: OutputQuant, input: Any, dim: int, index: Tensor, src: Any, reduce: str, *, include_self: bool = True
) -> QTensor:
    """Codes of `input` with the elements of `src` that go to one place reduced there.

    Args:
        out: output scale and dtype.
        input: QTensor of codes; a float tensor (new zeros, mostly) counts with its real values.
        dim: the dimension that the indices run over.
        index: int64, as many dimensions as src and nowhere larger.
        src: QTensor of codes.
        reduce: "sum", "mean", "amax", "amin" or "prod".
        include_self: whether the value of `input` itself counts where elements go to.

    Returns:
        `clamp(round(r / s_y))` of the real result r: sums, counts and extremes of codes are exact in int64, the
        products by scales, the sum of both operands, the quotient and "prod" are float64, r is float32.
    """
    real = _reduced(input, dim, index, src, reduce, include_self).to(torch.float32)
    return out.wrap(quantize(real, out.scale, out.info))


def _reduced(input: Any, dim: int, index: Tensor, src: QTensor, reduce: str, include_self: bool) -> Tensor:
    """The real result, float64."""
    own, codes, scale = _real(input), src.int_repr().to(torch.int64), src.scale.double()
    if reduce in ("amax", "amin"):
        nothing = src.info.quant_min - 1 if reduce == "amax" else src.info.quant_max + 1
        best = torch.full_like(own, nothing, dtype=torch.int64).scatter_reduce(dim, index, codes, reduce)
        found, is_hit = best.to(torch.float64) * scale, best != nothing
        both = torch.maximum(own, found) if reduce == "amax" else torch.minimum(own, found)
        return torch.where(is_hit, both if include_self else found, own)
    zeros = torch.zeros_like(own, dtype=torch.int64)
    count = zeros.scatter_add(dim, index, torch.ones_like(codes))
    if not include_self:
        own = torch.where(count > 0, 1.0 if reduce == "prod" else 0.0, own)
    if reduce == "prod":
        return own.scatter_reduce(dim, index, codes.to(torch.float64) * scale, reduce)
    total = own + zeros.scatter_add(dim, index, codes).to(torch.float64) * scale
    if reduce == "mean":
        total = total / (count + 1 if include_self else count.clamp_min(1)).to(torch.float64)
    return total


def _real(operand: Any) -> Tensor:
    """Real values of an operand, float64."""
    if isinstance(operand, QTensor):
        return operand.int_repr().to(torch.float64) * operand.scale.double()
    real: Tensor = operand.to(torch.float64)
    return real


def _scatter_reduce_output(
    fake_quant: FakeQuantize, y: Tensor, input: Any, dim: int, index: Tensor, src: Any, reduce: str,
    *, include_self: bool = True,
) -> Tensor:  # fmt: skip
    """The result on the grid.

    The mean of two codes at the scale of the output lies halfway between codes: both forms must see the same number
    there, so that what is on the grid is reduced as the integers are.
    """
    operands = [v for v in (input, src) if isinstance(v, QTensor)]
    if operands and all(v.is_rounded for v in operands) and isinstance(src, QTensor):
        exact = _reduced(input, dim, index, src, reduce, include_self).detach().to(torch.float32)
        y = exact + (y - y.detach())
    return quantized_output(y, fake_quant)


def _scatter_add_float(input: Any, dim: int, index: Any, src: Any) -> Any:
    return torch.scatter_add(input, dim, index, src)


def _index_add_float(input: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Any:
    return torch.index_add(input, dim, index, source, alpha=alpha)


def _scatter_reduce_float(input: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True) -> Any:
    return torch.scatter_reduce(input, dim, index, src, reduce, include_self=include_self)


# what is added to is mostly new zeros, which need no scale; where it is quantized, its codes count
_PLAIN = ((0, "input"), (2, "index"))

SCATTER_ADD = register(
    OpSpec("scatter_add", Family.FUNCTION, functions=("scatter_add",), float_fn=_scatter_add_float,
           integer_fn=scatter_add_codes, plain_arguments=_PLAIN,
           note="sums at indices, as graph networks collect messages; indices are plain")
)  # fmt: skip
INDEX_ADD = register(
    OpSpec("index_add", Family.FUNCTION, functions=("index_add",), float_fn=_index_add_float,
           integer_fn=index_add_codes, plain_arguments=_PLAIN, note="as scatter_add, slice by slice; alpha")
)  # fmt: skip
SCATTER_REDUCE = register(
    OpSpec("scatter_reduce", Family.FUNCTION, functions=("scatter_reduce",), float_fn=_scatter_reduce_float,
           integer_fn=scatter_reduce_codes, plain_arguments=_PLAIN, fake_quant_output=_scatter_reduce_output,
           note="sum, mean, amax, amin, prod at indices; include_self; indices are plain")
)  # fmt: skip
