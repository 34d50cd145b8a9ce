"""index_add, scatter_add: exact integer sums at indices, requantized once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def _scatter_add_float(input: Any, dim: int, index: Any, src: Any) -> Any:
    return torch.scatter_add(input, dim, index, src)


def _index_add_float(input: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Any:
    return torch.index_add(input, dim, index, source, alpha=alpha)


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
