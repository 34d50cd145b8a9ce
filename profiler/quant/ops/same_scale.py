"""Ops that compute values between the codes and keep the scale: both forms round to the grid in the same way."""

from __future__ import annotations

from collections.abc import Callable

import torch
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
        exact: the op on integer codes; what it gives is rounded, saturated and cast here.
    """
    if source.holds_codes:
        return source.like(_rounded(exact(source.plain), source).to(source.plain.dtype))
    if not source.is_rounded:
        return source.like(real(source.plain))
    with torch.no_grad():
        codes = _rounded(exact(source.int_repr()), source)
        values = dequantize(codes, source.scale, source.ch_axis)
    y = real(source.plain) if torch.is_grad_enabled() else values
    if y.requires_grad:
        step = along_axis(source.scale, y.dim(), source.ch_axis)
        inside = y.clamp(source.info.quant_min * step, source.info.quant_max * step)
        values = values + (inside - inside.detach())
    return source.like(values)


def _rounded(y: Tensor, source: QTensor) -> Tensor:
    return round_half_even(y).clamp(source.info.quant_min, source.info.quant_max)
