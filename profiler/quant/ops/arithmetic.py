"""mul, div, neg, abs, sign: exact integer products and correctly rounded quotients, requantized once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.quant.affine import quantize
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.lookup import finite_gradient
from profiler.quant.ops.operands import as_float32, rescaled
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, to_float
from profiler.quant.requantize import FLOAT32_EXACT, requantize


def mul_codes(out: OutputQuant, input: Any, other: Any) -> QTensor:
    """Codes of `input * other`.

    Args:
        out: output scale and dtype.
        input: QTensor of codes, a number (also a 0-d float tensor), or an integer or bool tensor.
        other: the same; broadcasts with input, and one of the two is a QTensor.

    Returns:
        `clamp(round(x_q * other_q * (s_x * s_o / s_y)))` with an exact integer product; a number goes into the
        multiplier.
    """
    x, factor = (input, other) if isinstance(input, QTensor) else (other, input)
    if isinstance(factor, QTensor):
        return out.wrap(requantize(_product(x, factor), x.scale * factor.scale / out.scale, out.info))
    factor = as_float32(factor, out.scale)
    if factor.dim() == 0:
        return out.wrap(requantize(x.plain, x.scale * factor / out.scale, out.info))
    product = x.plain.to(torch.float32) * factor
    return out.wrap(requantize(product, x.scale / out.scale, out.info, is_whole=False))


def _product(x: QTensor, other: QTensor) -> Tensor:
    """Exact: float32 where the product of two codes stays below 2**24, else int32 (at most 2**30)."""
    is_float32_exact = x.info.quant_min * other.info.quant_min < FLOAT32_EXACT
    carrier = torch.float32 if is_float32_exact else torch.int32
    return x.plain.to(carrier) * other.plain.to(carrier)


def div_codes(out: OutputQuant, input: Any, other: Any, *, rounding_mode: str | None = None) -> QTensor:
    """Codes of `input / other`.

    Args:
        out: output scale and dtype.
        input: QTensor of codes, a number (also a 0-d float tensor), or an integer or bool tensor.
        other: the same; broadcasts with input, and one of the two is a QTensor.
        rounding_mode: None; "floor" or "trunc" round the real quotient to a whole number.

    Returns:
        `clamp(round(x_q / other_q * (s_x / (s_o * s_y))))`, quotient and product in float32. Division by 0 gives the
        end of the range that has the dividend's sign, 0 / 0 gives 0.
    """
    if rounding_mode is not None:
        quotient = torch.div(*(as_float32(to_float(v), out.scale) for v in (input, other)), rounding_mode=rounding_mode)
        return out.wrap(quantize(_zero_for_nan(quotient), out.scale, out.info))
    dividend, dividend_scale = _value_and_scale(out, input)
    divisor, divisor_scale = _value_and_scale(out, other)
    quotient = torch.where(dividend == 0, 0.0, dividend / divisor)
    multiplier = dividend_scale / (divisor_scale * out.scale)
    return out.wrap(requantize(quotient, multiplier, out.info, is_whole=False))


def _value_and_scale(out: OutputQuant, operand: Any) -> tuple[Tensor, Tensor]:
    if isinstance(operand, QTensor):
        return operand.plain.to(torch.float32), operand.scale
    return as_float32(operand, out.scale), torch.ones_like(out.scale)


def _zero_for_nan(x: Tensor) -> Tensor:
    return torch.where(torch.isnan(x), 0.0, x)


def neg_codes(out: OutputQuant, input: QTensor) -> QTensor:
    """Codes of `-input`."""
    return out.wrap(requantize(input.plain, -input.scale / out.scale, out.info))


def abs_codes(out: OutputQuant, input: QTensor) -> QTensor:
    """Codes of `|input|`."""
    return out.wrap(requantize(input.plain.to(torch.float32).abs(), input.scale / out.scale, out.info))


def sign_codes(out: OutputQuant, input: QTensor) -> QTensor:
    """Codes of -1, 0 and 1."""
    return out.wrap(requantize(input.plain.sign(), rescaled(out, 1.0), out.info))


def _mul_float(input: Any, other: Any) -> Any:
    return input * other


def _div_float(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    divisor = finite_gradient(other)
    if isinstance(divisor, Tensor) and divisor.is_floating_point():
        divisor = divisor + 0.0  # codes have one zero: -0.0, which flips the sign of the pole, becomes 0.0
    return torch.div(as_tensor(finite_gradient(input), divisor), divisor, rounding_mode=rounding_mode)


def as_tensor(value: Any, other: Any) -> Any:
    """A number as a 0-d tensor beside a tensor."""
    if isinstance(value, Tensor) or not isinstance(other, Tensor):
        return value
    return torch.full((), value, dtype=other.dtype if other.is_floating_point() else None, device=other.device)


def _neg_float(input: Any) -> Any:
    return torch.neg(input)


def _abs_float(input: Any) -> Any:
    return torch.abs(input)


def _sign_float(input: Any) -> Any:
    return torch.sign(input)


MUL = register(
    OpSpec("mul", Family.FUNCTION, functions=("mul",), float_fn=_mul_float, integer_fn=mul_codes,
           note="`*`, torch.mul, FloatFunctional.mul; broadcasting; numbers, integer and bool masks as operands")
)  # fmt: skip
DIV = register(
    OpSpec("div", Family.FUNCTION, functions=("div",), float_fn=_div_float, integer_fn=div_codes, saturates=True,
           note="`/`, torch.div; x / 0 is the end of the range, 0 / 0 is 0; rounding_mode on real values")
)  # fmt: skip
NEG = register(
    OpSpec("neg", Family.FUNCTION, functions=("neg", "negative"), float_fn=_neg_float, integer_fn=neg_codes,
           note="`-x`, torch.neg")
)  # fmt: skip
ABS = register(
    OpSpec("abs", Family.FUNCTION, functions=("abs", "absolute"), float_fn=_abs_float, integer_fn=abs_codes,
           note="abs(x), torch.abs")
)  # fmt: skip
SIGN = register(
    OpSpec("sign", Family.FUNCTION, functions=("sign",), float_fn=_sign_float, integer_fn=sign_codes,
           note="-1, 0 or 1")
)  # fmt: skip
