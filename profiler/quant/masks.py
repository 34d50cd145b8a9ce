"""Additive masks: float tensors of 0 and numbers such as -1e9 that switch elements off before a softmax."""

from __future__ import annotations

from torch import Tensor

from profiler.quant.qtensor import QTensor
from profiler.quant.tracing import not_traced

# A mask has no resolution to lose, so its scale says what it is: data has this one by an accident of one in 2**23.
# Whatever switches off is at least one step of it.
MASK_SCALE = 8191.0
OFF = -9000.0


def is_additive_mask(values: Tensor) -> bool:
    """Whether all values are 0 or at most -9000 (-inf too), and some are the latter."""
    off = values <= OFF
    return bool(off.any()) and bool((off | (values == 0)).all())


@not_traced
def is_mask_scale(scale: Tensor) -> bool:
    """Whether a scale is that of masks, or the power of two above it."""
    return scale.numel() == 1 and MASK_SCALE - 0.5 < float(scale) <= MASK_SCALE + 1


def masked_elements(operand: object) -> Tensor | None:
    """Where a mask switches off, bool of its shape; None for what is no quantized mask.

    Args:
        operand: QTensor of codes, or of values in a prepared model.
    """
    if not isinstance(operand, QTensor) or not is_mask_scale(operand.scale):
        return None
    return operand.plain < (0 if operand.holds_codes else -MASK_SCALE / 2)
