"""clamp: a table where the bounds are numbers; quantized bounds are rescaled to the output's scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.quant.affine import quantize
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.lookup import as_number, table_codes
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor
from profiler.quant.requantize import requantize


def clamp_codes(out: OutputQuant, input: QTensor, min: Any = None, max: Any = None) -> QTensor:
    """Codes of `min(max(x, min), max)`.

    Args:
        out: output scale and dtype.
        input: codes.
        min: number, codes that broadcast with input, or None.
        max: number, codes that broadcast with input, or None; wins where the bounds cross.
    """
    if not isinstance(min, QTensor) and not isinstance(max, QTensor):
        min, max = as_number(min), as_number(max)
        return table_codes(out, input, lambda x: torch.clamp(x, min, max), ("clamp", min, max))
    codes = requantize(input.plain, input.scale / out.scale, out.info)
    if min is not None:
        codes = torch.maximum(codes, _bound_codes(out, min))
    return out.wrap(codes if max is None else torch.minimum(codes, _bound_codes(out, max)))


def clamp_max_codes(out: OutputQuant, input: QTensor, max: Any) -> QTensor:
    """Codes of `min(x, max)`."""
    return clamp_codes(out, input, None, max)


def _bound_codes(out: OutputQuant, bound: Any) -> Tensor:
    if isinstance(bound, QTensor):
        return requantize(bound.plain, bound.scale / out.scale, out.info)
    return quantize(torch.tensor(float(bound), device=out.scale.device), out.scale, out.info)


def _clamp_float(input: Any, min: Any = None, max: Any = None) -> Any:
    return torch.clamp(input, min, max)


def _clamp_max_float(input: Any, max: Any) -> Any:
    return torch.clamp(input, max=max)


CLAMP = register(
    OpSpec("clamp", Family.FUNCTION, functions=("clamp", "clip", "clamp_min"), float_fn=_clamp_float,
           integer_fn=clamp_codes, note="table for number bounds; quantized bounds are rescaled")
)  # fmt: skip
CLAMP_MAX = register(
    OpSpec("clamp_max", Family.FUNCTION, functions=("clamp_max",), float_fn=_clamp_max_float,
           integer_fn=clamp_max_codes, note="as clamp")
)  # fmt: skip
