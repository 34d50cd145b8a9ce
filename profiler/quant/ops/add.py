"""add, sub: both operands are rescaled to the output's scale and their sum is rounded once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.quant.affine import qint8
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.masks import is_mask_scale, masked_elements, switched_off
from profiler.quant.modules import quantized_output
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
        Where an operand is an additive mask (see masks.py) and switches off, the least int16 code, as masked_fill does;
        so it is where a sum with a mask is added to again.
    """
    off, steps = _switched_off(input, other, alpha), rescaled(out, input) + rescaled(out, other, alpha)
    return codes_of_steps(out, steps) if off is None else switched_off(codes_of_steps(out, _kept(steps, off)), off)


def sub_codes(out: OutputQuant, input: Any, other: Any, *, alpha: float = 1.0) -> QTensor:
    """Codes of `input - alpha * other`; arguments as in add_codes."""
    return add_codes(out, input, other, alpha=-alpha)


def add_relu_codes(out: OutputQuant, input: Any, other: Any) -> QTensor:
    """Codes of `relu(input + other)`; arguments as in add_codes."""
    total = add_codes(out, input, other)
    return total.like(total.plain.clamp_min(0))


def _switched_off(input: Any, other: Any, alpha: float) -> Tensor | None:
    """Where the sum is switched off by a mask; None without one, and for two masks, whose sum is one."""
    left, right = masked_elements(input) if alpha == 1 else None, masked_elements(other) if alpha > 0 else None
    if left is None or right is None:
        return left if right is None else right
    return None if all(is_mask_scale(operand.scale) for operand in (input, other)) else left | right


def _kept(values: Tensor, off: Tensor) -> Tensor:
    return torch.where(off, 0.0, values)


def _add_output(fake_quant: FakeQuantize, y: Tensor, input: Any, other: Any, *, alpha: float = 1.0) -> Tensor:
    """The sum on the grid. What a mask switches off is not observed and gets the least int16 value.

    In int16 that is the least value of the output's own range, which then reaches 8 times as far as the data.
    """
    off = _switched_off(input, other, alpha)
    if off is None:
        return quantized_output(y, fake_quant)
    kept = _kept(y, off)
    if fake_quant.dtype != qint8 and kept.numel():
        kept = torch.where(off, -8 * kept.detach().abs().amax(), y)
    result = quantized_output(kept, fake_quant)
    if not isinstance(result, QTensor):
        return y
    return switched_off(result if result.is_rounded else result.like(y), off)


def _add_float(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return torch.add(input, other, alpha=alpha) if isinstance(input, Tensor) else input + alpha * other


def _sub_float(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return torch.sub(input, other, alpha=alpha) if isinstance(input, Tensor) else input - alpha * other


def _add_relu_float(input: Any, other: Any) -> Any:
    return F.relu(_add_float(input, other))


ADD = register(
    OpSpec("add", Family.FUNCTION, functions=("add",), float_fn=_add_float, integer_fn=add_codes,
           fake_quant_output=_add_output,
           note="`+`, torch.add, sum() of a list, FloatFunctional.add; broadcasting; a number as operand; alpha; "
           "an additive mask of 0 and -1e9 or -inf gives int16, as masked_fill")
)  # fmt: skip
SUB = register(
    OpSpec("sub", Family.FUNCTION, functions=("sub",), float_fn=_sub_float, integer_fn=sub_codes,
           note="`-`, torch.sub, torch.rsub; as add")
)  # fmt: skip
ADD_RELU = register(
    OpSpec("add_relu", Family.FUNCTION, functions=("add_relu",), float_fn=_add_relu_float, integer_fn=add_relu_codes,
           note="FloatFunctional.add_relu")
)  # fmt: skip
