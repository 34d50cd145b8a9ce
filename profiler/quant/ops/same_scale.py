"""Ops that compute values between the codes and keep the scale: both forms round to the grid in the same way."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from profiler.quant.affine import along_axis, dequantize, round_half_even
from profiler.quant.qtensor import QTensor


def on_the_grid(source: QTensor, real: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor]) -> QTensor:
    """Result of an op at the scale of `source`.

    While fake quant is on the values come from the codes, by the same arithmetic as the integer form, so that they
    predict it exactly; the gradient is that of the real op, 0 outside the range. In calibration nothing is rounded.

    Args:
        source: values or codes that the op works on.
        real: the op on real values.
        exact: the op on codes in float64; what it gives is rounded, saturated and cast here.
    """
    if source.holds_codes:
        return source.like(_rounded(exact(source.plain.double()), source).to(source.plain.dtype))
    y = real(source.plain)
    if not source.is_rounded:
        return source.like(y)
    codes = _rounded(exact(source.int_repr().double()), source)
    values = dequantize(codes, source.scale, source.ch_axis)
    if y.requires_grad:
        step = along_axis(source.scale, y.dim(), source.ch_axis)
        inside = y.clamp(source.info.quant_min * step, source.info.quant_max * step)
        values = values + (inside - inside.detach())
    return source.like(values)


def _rounded(y: Tensor, source: QTensor) -> Tensor:
    return round_half_even(y.detach()).clamp(source.info.quant_min, source.info.quant_max)
