"""Operands of arithmetic: codes, numbers and plain tensors brought to the output's steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.quant.affine import round_half_even
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.qtensor import QTensor


def rescaled(out: OutputQuant, operand: Any, factor: float = 1.0) -> Tensor:
    """`factor * operand` in steps of the output, not rounded.

    Args:
        out: output scale and dtype.
        operand: codes; or a number, a 0-d float tensor, an integer or bool tensor, which stand for themselves.
        factor: a number.

    Returns:
        float32: `x_q * (s_x * factor / s_y)`, or `number * factor / s_y`.
    """
    if isinstance(operand, QTensor):
        return operand.plain.to(torch.float32) * (operand.scale * factor / out.scale)
    if not isinstance(operand, Tensor):
        operand, factor = operand * factor, 1.0
    value = as_float32(operand, out.scale)
    return (value if factor == 1.0 else value * factor) / out.scale


def as_float32(operand: Any, like: Tensor) -> Tensor:
    """A number or plain tensor as float32 on the device of `like`."""
    if isinstance(operand, Tensor):
        return operand.to(torch.float32)
    return torch.full((), float(operand), dtype=torch.float32, device=like.device)


def codes_of_steps(out: OutputQuant, steps: Tensor) -> QTensor:
    """Codes of values given in steps of the output: rounded half to even, clamped."""
    codes = round_half_even(steps).clamp_(out.info.quant_min, out.info.quant_max)
    return out.wrap(codes.to(out.info.torch_dtype))
