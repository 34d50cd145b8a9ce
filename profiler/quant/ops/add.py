"""add: both operands are rescaled to the output's scale and their sum is rounded once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.quant.affine import round_half_even
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor


def add_codes(out: OutputQuant, x: Any, other: Any, *, alpha: float = 1.0) -> QTensor:
    """Codes of `x + alpha * other`.

    Args:
        out: output scale and dtype.
        x: QTensor of codes, or a number.
        other: QTensor of codes that broadcasts with x, or a number.
        alpha: factor of `other`.

    Returns:
        `clamp(round(x_q * (s_x / s_y) + other_q * (alpha * s_o / s_y)))`, products and sum in float32, one rounding.
    """
    total = _rescaled(out, x, 1.0) + _rescaled(out, other, alpha)
    codes = round_half_even(total).clamp_(out.info.quant_min, out.info.quant_max)
    return out.wrap(codes.to(out.info.torch_dtype))


def _rescaled(out: OutputQuant, operand: Any, factor: float) -> Tensor:
    if isinstance(operand, QTensor):
        return operand.plain.to(torch.float32) * (operand.scale * factor / out.scale)
    scaled: Tensor = operand * factor / out.scale
    return scaled


def _add_float(x: Any, other: Any, *, alpha: float = 1.0) -> Any:
    return torch.add(x, other, alpha=alpha) if isinstance(x, Tensor) else x + alpha * other


ADD = register(
    OpSpec("add", Family.FUNCTION, functions=("add",), float_fn=_add_float, integer_fn=add_codes,
           note="`+`, torch.add, FloatFunctional.add; broadcasting; a number as operand")
)  # fmt: skip
