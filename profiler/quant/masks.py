"""Additive masks: numbers such as -1e9, or -100 before a softmax, that switch elements off."""

from __future__ import annotations

import torch
from torch import Tensor

from profiler.quant.affine import qint16
from profiler.quant.qtensor import QTensor
from profiler.quant.tracing import not_traced

# A mask has no resolution to lose, so its scale says what it is: data has this one by an accident of one in 2**23.
# Whatever switches off is at least one step of it.
MASK_SCALE = 2.0**13 - 1
OFF = -9000.0
# Before a softmax less is enough: the share of what lies 50 below is exp(-50).
OFF_BEFORE_SOFTMAX = -50.0
_LEAST = -(2**15)


def is_additive_mask(values: Tensor) -> bool:
    """Whether all values are 0 or at most -9000 (-inf too), and some are the latter."""
    off = values <= OFF
    return bool(off.any()) and bool((off | (values == 0)).all())


@not_traced
def is_mask_scale(scale: Tensor) -> bool:
    """Whether a scale is that of masks, or the power of two above it."""
    return scale.numel() == 1 and MASK_SCALE - 0.5 < float(scale) <= MASK_SCALE + 1


def masked_elements(operand: object) -> Tensor | None:
    """Where a mask, or a sum with one, is switched off, bool of its shape; None for what is neither.

    Args:
        operand: QTensor of codes, or of values in a prepared model.
    """
    if not isinstance(operand, QTensor):
        return None
    if is_mask_scale(operand.scale):
        return operand.plain < (0 if operand.holds_codes else -MASK_SCALE / 2)
    if not operand.has_off:
        return None
    if operand.holds_codes:
        return operand.plain == _LEAST
    return operand.plain <= ((_LEAST + 0.5) * operand.scale if operand.is_rounded else OFF)


def switched_off(x: QTensor, off: Tensor) -> QTensor:
    """A quantized value with elements switched off: the least int16 code at the scale of x.

    Where fake quant is off: numbers that no sum with data brings back above `OFF`.

    Args:
        x: quantized tensor, values or codes.
        off: bool, broadcasts with x.
    """
    if x.holds_codes:
        result = x.like(torch.where(off, _LEAST, x.plain.to(torch.int16)))
    elif x.is_rounded:
        result = x.like(torch.where(off, _LEAST * x.scale, x.plain))
    else:
        result = x.like(far_below(x.plain, off))
    result.qdtype, result.has_off = (qint16 if x.is_rounded else x.qdtype), True
    return result


def far_below(values: Tensor, off: Tensor) -> Tensor:
    """Real values with elements switched off."""
    return torch.where(off, values.clamp_max(2 * OFF), values)


def has_far_entries(values: Tensor) -> bool:
    """Whether some entries lie at or below -50, and all others well above: a mask that a softmax reads."""
    off = values <= OFF_BEFORE_SOFTMAX
    return bool(off.any()) and bool((off | (values >= OFF_BEFORE_SOFTMAX / 2)).all())
