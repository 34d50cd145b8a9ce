"""From an int32 accumulator to output codes: float32 multiplier, product in float32, half to even."""

from __future__ import annotations

import torch
from torch import Tensor

from profiler.quant.affine import QInfo, along_axis, round_half_even

# Integers up to these magnitudes are exact in the float types that carry them.
FLOAT32_EXACT = 2**24
FLOAT64_EXACT = 2**53


def carrier_dtype(bound: float) -> torch.dtype:
    """The float type that computes a sum of integer products exactly.

    Args:
        bound: the largest magnitude that any partial sum can reach.

    Returns:
        float32 below 2**24, else float64, which is exact far beyond the int32 accumulator. float32 is also refused
        when the process allows reduced-precision float32 products.
    """
    is_float32_exact = torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if bound < FLOAT32_EXACT and is_float32_exact else torch.float64


def requantize(
    acc: Tensor, multiplier: Tensor, info: QInfo, ch_axis: int = -1, *, limit: Tensor | None = None
) -> Tensor:
    """Output codes of an accumulator: `clamp(round(acc * multiplier))`.

    Args:
        acc: integers, as int32 or carried exactly by a float type.
        multiplier: `s_x * s_w[c] / s_y`, float32, scalar or `[C]` along `ch_axis`.
        info: output dtype.
        ch_axis: axis of the multiplier; -1 for a scalar.
        limit: largest code allowed below `info.quant_max` (ReLU6), scalar.

    Returns:
        Integer tensor of `info.torch_dtype`.

    Source:
        ONNX Runtime's requantization: int32 to float32, float32 product, ties to even.
    """
    product = acc.to(torch.float32) * along_axis(multiplier, acc.dim(), ch_axis)
    codes = round_half_even(product).clamp_(info.quant_min, info.quant_max)
    if limit is not None:
        codes = torch.minimum(codes, limit)
    return codes.to(info.torch_dtype)


def requantize_rows(acc: Tensor, multiplier: Tensor, lowest: float, highest: float, out: Tensor) -> None:
    """The same for rows `[M, C]`, written into `out`; the accumulator is used up.

    Args:
        acc: float32 `[M, C]`, the accumulator rounded to float32; overwritten.
        multiplier: float32 `[C]`.
        lowest: smallest code; 0 after a ReLU, whose clamp at 0 commutes with a positive multiplier.
        highest: largest code.
        out: integer tensor `[M, C]`.
    """
    acc.mul_(multiplier)
    out.copy_(acc.round_().clamp_(lowest, highest))
