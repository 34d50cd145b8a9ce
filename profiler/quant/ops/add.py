"""add, sub: both operands are rescaled to the output's scale and their sum is rounded once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.operands import codes_of_steps, rescaled
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor


def add_codes(out: OutputQuant, input: Any, other: Any, *, alpha: float = 1.0) -> QTensor:
    """Codes of `input + alpha * other`.

    Args:
        out: output scale and dtype.
        input: QTensor of codes, or a number.
        other: QTensor of codes that broadcasts with input, or a number.
        alpha: factor of `other`.

    Returns:
        `clamp(round(x_q * (s_x / s_y) + other_q * (alpha * s_o / s_y)))`, products and sum in float32, one rounding.
    """
    return codes_of_steps(out, rescaled(out, input) + rescaled(out, other, alpha))


def sub_codes(out: OutputQuant, input: Any, other: Any, *, alpha: float = 1.0) -> QTensor:
    """Codes of `input - alpha * other`; arguments as in add_codes."""
    return add_codes(out, input, other, alpha=-alpha)


def add_relu_codes(out: OutputQuant, input: Any, other: Any) -> QTensor:
    """Codes of `relu(input + other)`; arguments as in add_codes."""
    total = add_codes(out, input, other)
    return total.like(total.plain.clamp_min(0))


def _add_float(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return torch.add(input, other, alpha=alpha) if isinstance(input, Tensor) else input + alpha * other


def _sub_float(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return torch.sub(input, other, alpha=alpha) if isinstance(input, Tensor) else input - alpha * other


def _add_relu_float(input: Any, other: Any) -> Any:
    return F.relu(_add_float(input, other))


ADD = register(
    OpSpec("add", Family.FUNCTION, functions=("add",), float_fn=_add_float, integer_fn=add_codes,
           note="`+`, torch.add, sum() of a list, FloatFunctional.add; broadcasting; a number as operand; alpha")
)  # fmt: skip
SUB = register(
    OpSpec("sub", Family.FUNCTION, functions=("sub",), float_fn=_sub_float, integer_fn=sub_codes,
           note="`-`, torch.sub, torch.rsub; as add")
)  # fmt: skip
ADD_RELU = register(
    OpSpec("add_relu", Family.FUNCTION, functions=("add_relu",), float_fn=_add_relu_float, integer_fn=add_relu_codes,
           note="FloatFunctional.add_relu")
)  # fmt: skip
