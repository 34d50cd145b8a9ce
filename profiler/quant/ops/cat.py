"""cat, stack: every operand is rescaled to the output's scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor
from profiler.quant.requantize import requantize


def cat_codes(out: OutputQuant, tensors: Sequence[Any], dim: int = 0) -> QTensor:
    """Codes of the joined tensors.

    Args:
        out: output scale and dtype.
        tensors: QTensors of codes, equal in all dimensions but `dim`; empty float tensors `[0]` among them count for
            nothing, as in torch.
        dim: the dimension to join along.
    """
    return out.wrap(torch.cat([_codes(out, t) for t in tensors], dim))


def stack_codes(out: OutputQuant, tensors: Sequence[QTensor], dim: int = 0) -> QTensor:
    """Codes of tensors of one shape, joined along a new dimension.

    Args:
        out: output scale and dtype.
        tensors: QTensors of codes.
        dim: the new dimension.
    """
    return out.wrap(torch.stack([_codes(out, t) for t in tensors], dim))


def _codes(out: OutputQuant, operand: Any) -> Tensor:
    """Codes at the output's scale; where the operand has that scale, its own."""
    if not isinstance(operand, QTensor):
        empty: Tensor = operand.to(out.info.torch_dtype)
        return empty
    if operand.qdtype == out.info.name and torch.equal(operand.scale, out.scale):
        return operand.plain
    return requantize(operand.plain, operand.scale / out.scale, out.info)


def _cat_float(tensors: Any, dim: int = 0) -> Any:
    return torch.cat(tensors, dim)


def _stack_float(tensors: Any, dim: int = 0) -> Any:
    return torch.stack(tensors, dim)


CAT = register(
    OpSpec("cat", Family.FUNCTION, functions=("cat",), float_fn=_cat_float, integer_fn=cat_codes,
           note="torch.cat, FloatFunctional.cat; operands keep their own scales; int8 and int16 mixed")
)  # fmt: skip
STACK = register(
    OpSpec("stack", Family.FUNCTION, functions=("stack",), float_fn=_stack_float, integer_fn=stack_codes,
           note="torch.stack, FloatFunctional.stack; as cat")
)  # fmt: skip
