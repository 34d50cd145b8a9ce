"""sum and cumsum: exact integer sums, requantized once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor
from profiler.quant.requantize import requantize


def sum_codes(out: OutputQuant, input: QTensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> QTensor:
    """Codes of a sum.

    Args:
        out: output scale and dtype.
        input: codes, any shape.
        dim: a number, several, or None for all.
        keepdim: whether the reduced dimensions stay, with size 1.
        dtype: has no meaning for codes.
    """
    return out.wrap(requantize(_sums(input, dim, keepdim), input.scale / out.scale, out.info))


def sum_values(input: QTensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    """Real values of a sum for an output of high precision, float32."""
    return _sums(input, dim, keepdim).to(torch.float32) * input.scale


def cumsum_codes(out: OutputQuant, input: QTensor, dim: int, dtype: Any = None) -> QTensor:
    """Codes of running sums along `dim`; `dtype` has no meaning for codes."""
    return out.wrap(requantize(_running_sums(input, dim), input.scale / out.scale, out.info))


def cumsum_values(input: QTensor, dim: int, dtype: Any = None) -> Tensor:
    """Real values of running sums for an output of high precision, float32."""
    return _running_sums(input, dim).to(torch.float32) * input.scale


def _sums(x: QTensor, dim: Any, keepdim: bool) -> Tensor:
    return torch.sum(x.plain.to(torch.int64), dim=dim, keepdim=keepdim)


def _running_sums(x: QTensor, dim: int) -> Tensor:
    return torch.cumsum(x.plain.to(torch.int64), dim)


def _sum_float(input: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    return torch.sum(input, dim=dim, keepdim=keepdim, dtype=dtype)


def _cumsum_float(input: Any, dim: int, dtype: Any = None) -> Any:
    return torch.cumsum(input, dim, dtype=dtype)


SUM = register(
    OpSpec("sum", Family.FUNCTION, functions=("sum",), float_fn=_sum_float, integer_fn=sum_codes,
           high_precision_fn=sum_values, note="over any dimensions")
)  # fmt: skip
CUMSUM = register(
    OpSpec("cumsum", Family.FUNCTION, functions=("cumsum",), float_fn=_cumsum_float, integer_fn=cumsum_codes,
           high_precision_fn=cumsum_values, note="running sums")
)  # fmt: skip
