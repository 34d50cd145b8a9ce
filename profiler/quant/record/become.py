"""Lets a tensor that is overwritten in place turn from a quantized value into a plain one and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.errors import UnsupportedOpError
from profiler.quant.affine import dequantize
from profiler.quant.qtensor import QTensor, user_line
from profiler.quant.record.deferred import Deferred


def become_float(target: QTensor, values: Tensor | None = None) -> None:
    """Make the tensor that every name refers to a plain one.

    Args:
        target: quantized value; it is no QTensor any more afterwards.
        values: its new real values; by default its own.
    """
    with torch._C.DisableTorchFunction():
        real = target.dequantize() if values is None else values
        real = real.as_subclass(Tensor)
        if target.holds_codes or values is not None:
            _give_data(target, real)
        target.__class__ = Tensor  # type: ignore[assignment]


def become_float_together(values: list[QTensor]) -> None:
    """Make values that show one memory plain ones that still do.

    Args:
        values: views of one memory, all with the same scale, none per channel where they hold codes.
    """
    with torch._C.DisableTorchFunction():
        first = values[0]
        if first.holds_codes:
            codes = first.plain
            whole = codes.as_strided((codes.untyped_storage().nbytes() // codes.element_size(),), (1,), 0)
            real = dequantize(whole, first.scale, -1)
            for value in values:
                _give_data(value, real.as_strided(value.size(), value.stride(), value.storage_offset()))
        for value in values:
            value.__class__ = Tensor  # type: ignore[assignment]


def become_quantized(target: Tensor, result: QTensor) -> None:
    """Make a plain tensor the quantized value that an in-place function left in it."""
    with torch._C.DisableTorchFunction():
        _give_data(target, result.plain)
        target.__class__ = QTensor
        target.scale, target.qdtype = result.scale, result.qdtype  # type: ignore[attr-defined]
        target.ch_axis, target.is_rounded = result.ch_axis, result.is_rounded  # type: ignore[attr-defined]
        target.has_off = result.has_off  # type: ignore[attr-defined]


def written_back(target: Tensor, result: Any) -> Any:
    """After an in-place function: every name of its target sees the result."""
    if isinstance(target, Deferred):
        target.value = result
    elif isinstance(result, QTensor) and not isinstance(target, QTensor) and target is not result:
        become_quantized(target, result)
        return target
    elif isinstance(target, QTensor) and isinstance(result, Tensor) and not isinstance(result, QTensor):
        become_float(target, result)
        return target
    return result


def _give_data(target: Tensor, data: Tensor) -> None:
    if data.requires_grad:
        raise UnsupportedOpError(
            f"an in-place function at {user_line()} changes between real and quantized values while gradients are "
            "recorded, which torch cannot do; write x = x + y instead of x += y there"
        )
    target.data = data
