"""From an int32 accumulator to output codes: a product in float32 and half to even, or a selectable alternative."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from profiler.errors import ConfigError
from profiler.quant.affine import QInfo, Requantization, along_axis, round_half_even

# Integers up to these magnitudes are exact in the float types that carry them.
FLOAT32_EXACT = 2**24
FLOAT64_EXACT = 2**53
INT32_LIMIT = 2.0**31
_LOG = logging.getLogger(__name__)


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


def warn_of_overflow(op_name: str, bound: float) -> None:
    """Say once per plan of an op that its worst inputs leave the int32 accumulator of a deployed runtime.

    Args:
        op_name: the op as reports name it.
        bound: `max_c(sum |w_q|) * max |x_q| + |b_q|` of the actual weights, plus what a fused add brings.
    """
    if bound >= INT32_LIMIT:
        _LOG.warning(
            "%s: the accumulator can reach %.4g, beyond int32 (%.4g); the values here stay exact, a runtime would wrap "
            "or saturate: quantize its input to int8 instead of int16, or split its fan-in",
            op_name,
            bound,
            INT32_LIMIT,
        )


_chosen = Requantization()


def set_requantization(method: str = "float32", ties: str = "half_even") -> None:
    """Choose how models converted from now on requantize; a converted model keeps what it was made with.

    Args:
        method: "float32" multiplies in float32, which is what ONNX Runtime computes; "fixed_point" multiplies by a
            31-bit mantissa and shifts right, which is what embedded targets do.
        ties: "half_even" (2.5 -> 2, 3.5 -> 4, -2.5 -> -2) or "half_up" (2.5 -> 3, 3.5 -> 4, -2.5 -> -2).

    Raises:
        ConfigError: an unknown method or rule for ties.
    """
    global _chosen
    if method not in ("float32", "fixed_point"):
        raise ConfigError(f"requantization {method!r} is unknown; use 'float32' or 'fixed_point'")
    if ties not in ("half_even", "half_up"):
        raise ConfigError(f"ties {ties!r} is unknown; use 'half_even' or 'half_up'")
    _chosen = Requantization(method, ties)


def get_requantization() -> Requantization:
    """What the next convert uses; float32 and half_even unless set."""
    return _chosen


def requantize(
    acc: Tensor,
    multiplier: Tensor,
    info: QInfo,
    ch_axis: int = -1,
    *,
    limit: Tensor | None = None,
    is_whole: bool = True,
) -> Tensor:
    """Output codes of an accumulator: `clamp(round(acc * multiplier))`, as `info.requantization` says.

    Args:
        acc: integers, as int32 or carried exactly by a float type.
        multiplier: `s_x * s_w[c] / s_y`, float32, scalar or `[C]` along `ch_axis`.
        info: output dtype.
        ch_axis: axis of the multiplier; -1 for a scalar.
        limit: largest code allowed below `info.quant_max` (ReLU6), scalar.
        is_whole: False where `acc` holds other numbers than integers; these are always multiplied in float32.

    Returns:
        Integer tensor of `info.torch_dtype`.

    Source:
        ONNX Runtime's requantization: int32 to float32, float32 product, ties to even.
    """
    how, multiplier = info.requantization, along_axis(multiplier, acc.dim(), ch_axis)
    if how.method == "fixed_point" and is_whole:
        codes = shifted_product(acc, multiplier, how.ties == "half_up")
    else:
        product = acc.to(torch.float32) * multiplier
        codes = round_half_up(product) if how.ties == "half_up" else round_half_even(product)
    codes = codes.clamp_(info.quant_min, info.quant_max)
    if limit is not None:
        codes = torch.minimum(codes, limit.to(codes.dtype))
    return codes.to(info.torch_dtype)


def shifted_product(acc: Tensor, multiplier: Tensor, is_half_up: bool = False) -> Tensor:
    """`round(acc * multiplier)` in int64: the multiplier is a 31-bit mantissa and a right shift.

    Args:
        acc: whole numbers of any dtype; beyond +-2**31 they saturate, as an int32 accumulator's hardware would.
        multiplier: float32, broadcasts to acc.
        is_half_up: ties go up; else to even.

    Returns:
        int64, acc's shape; magnitudes beyond 2**31 only say that the code saturates.
    """
    fraction, exponent = torch.frexp(multiplier.to(torch.float64))
    mantissa = torch.round(fraction * 2.0**31).to(torch.int64)  # +-2**30 .. +-2**31
    shift = 31 - exponent.to(torch.int64)
    product = acc.to(torch.int64).clamp(-(2**31), 2**31) * mantissa
    right = shift.clamp(1, 62)
    floor = product >> right
    rest, half = product - (floor << right), torch.ones_like(right) << (right - 1)
    up = rest >= half if is_half_up else (rest > half) | ((rest == half) & (floor % 2 == 1))
    rounded = floor + up.to(torch.int64)
    rounded = torch.where(shift > 62, 0, rounded)
    return torch.where(shift < 1, product.sign() << 32, rounded)


def round_half_up(x: Tensor) -> Tensor:
    """Nearest integer, ties up: 2.5 -> 3, 3.5 -> 4, -2.5 -> -2."""
    nearest = round_half_even(x)
    return nearest + (x - nearest == 0.5).to(x.dtype)


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
