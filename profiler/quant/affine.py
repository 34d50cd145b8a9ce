"""The one place that rounds and clamps: symmetric affine quantization, half to even."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from profiler.errors import ConfigError
from profiler.quant.blocks import channel_blocks, flat_blocks, is_plain_eager


@dataclass(frozen=True)
class Requantization:
    """How a converted op makes codes of its accumulator; the values are those of `set_requantization`."""

    method: str = "float32"
    ties: str = "half_even"


@dataclass(frozen=True)
class QInfo:
    """The code range of a quantized dtype, the plain torch dtype that carries its codes, and how they are made."""

    name: str
    quant_min: int
    quant_max: int
    torch_dtype: torch.dtype
    requantization: Requantization = Requantization()

    @property
    def half_range(self) -> float:
        """Half the width of the code range: 127.5 for int8, 32767.5 for int16."""
        return (self.quant_max - self.quant_min) / 2


qint4, qint8, qint16, qint32 = "qint4", "qint8", "qint16", "qint32"
_QINFO = {
    qint4: QInfo(qint4, -8, 7, torch.int8),
    qint8: QInfo(qint8, -128, 127, torch.int8),
    qint16: QInfo(qint16, -32768, 32767, torch.int16),
    qint32: QInfo(qint32, -(2**31), 2**31 - 1, torch.int32),
}

# Smallest absmax that a scale is made from: the int8 scale is then 2**-23, so all-zero channels stay finite.
ABSMAX_FLOOR = 127.5 * 2.0**-23


def qinfo(dtype: str) -> QInfo:
    """Code range of a quantized dtype name.

    Raises:
        ConfigError: `dtype` is none of qint4, qint8, qint16, qint32.
    """
    try:
        return _QINFO[dtype]
    except (KeyError, TypeError):
        raise ConfigError(f"quantized dtype {dtype!r} is unknown; use one of {', '.join(_QINFO)}") from None


def scale_from_absmax(absmax: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Scale of a symmetric quantizer whose range is +-absmax.

    Args:
        absmax: non-negative bound, any shape (one value per tensor, or `[C]`).
        quant_min: smallest code.
        quant_max: largest code.

    Returns:
        float32 scale, same shape: `max(absmax, floor) / ((quant_max - quant_min) / 2)`.
    """
    return absmax.to(torch.float32).clamp_min(ABSMAX_FLOOR) / ((quant_max - quant_min) / 2)


def round_half_even(x: Tensor) -> Tensor:
    """Nearest integer, ties to even: 2.5 -> 2, 3.5 -> 4, -2.5 -> -2."""
    return torch.round(x)


def along_axis(values: Tensor, ndim: int, ch_axis: int) -> Tensor:
    """View a per-channel `[C]` tensor so that it broadcasts along `ch_axis` of an `ndim`-d tensor."""
    if ch_axis < 0 or values.dim() == 0:
        return values
    shape = [1] * ndim
    shape[ch_axis] = -1
    return values.reshape(shape)


def quantize(x: Tensor, scale: Tensor, info: QInfo, ch_axis: int = -1) -> Tensor:
    """Codes of a float tensor: `clamp(round(x * (1 / scale)), quant_min, quant_max)`.

    Args:
        x: float tensor, any shape.
        scale: scalar, or `[C]` along `ch_axis`.
        info: the target dtype.
        ch_axis: axis of the scale; -1 for per tensor.

    Returns:
        Integer tensor of `info.torch_dtype`, same shape.
    """
    inverse = along_axis(1.0 / scale, x.dim(), ch_axis)
    codes = round_half_even(x * inverse).clamp_(info.quant_min, info.quant_max)
    return codes.to(info.torch_dtype)


def dequantize(x_q: Tensor, scale: Tensor, ch_axis: int = -1) -> Tensor:
    """Real values of codes: `x_q * scale` in float32."""
    return x_q.to(torch.float32) * along_axis(scale, x_q.dim(), ch_axis)


def fake_quantize(x: Tensor, scale: Tensor, info: QInfo, ch_axis: int = -1) -> Tensor:
    """Round to codes and back in float, with the straight-through gradient (0 outside the range).

    Args:
        x: float tensor, any shape.
        scale: scalar, or `[C]` along `ch_axis`, float32.
        info: the target dtype.
        ch_axis: axis of the scale; -1 for per tensor.

    Returns:
        `clamp(round(x * (1 / scale)), quant_min, quant_max) * scale`, same shape. NaN stays NaN.

    Source:
        The formula of torch's kernels `fake_quantize_per_tensor_affine` and `fake_quantize_per_channel_affine`, which
        run where operators are recorded or x is not float32 on the CPU; `tests/quant/test_affine.py` holds both
        against float64.
    """
    if x.dtype is torch.float32 and is_plain_eager(x):
        scale = scale.detach().reshape(()) if ch_axis < 0 else along_axis(scale.detach(), x.dim(), ch_axis)
        if x.requires_grad and torch.is_grad_enabled():
            rounded: Tensor = _StraightThrough.apply(x, scale, info)  # type: ignore[no-untyped-call]
            return rounded
        return round_to_grid(x.detach(), scale, info.quant_min, info.quant_max)
    if ch_axis < 0:
        zero_point = torch.zeros((), dtype=torch.int32, device=x.device)
        return torch.fake_quantize_per_tensor_affine(x, scale.reshape(()), zero_point, info.quant_min, info.quant_max)
    zero_points = torch.zeros(scale.shape, dtype=torch.int32, device=x.device)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_points, ch_axis, info.quant_min, info.quant_max)


@torch.no_grad()
def round_to_grid(x: Tensor, scale: Tensor, lowest: float, highest: float, *, out: Tensor | None = None) -> Tensor:
    """Fake quantization without a gradient: `clamp(round(x * (1 / scale)), lowest, highest) * scale`.

    Args:
        x: float32, any shape.
        scale: 0-d, or of a shape that broadcasts to x.
        lowest: smallest code.
        highest: largest code.
        out: where the result goes, of x's shape and layout; may be x itself.
    """
    out = torch.empty_like(x) if out is None else out
    inverse = 1.0 / scale
    if scale.dim():
        for piece, result, factor, step in channel_blocks(x, out, inverse, scale):
            torch.mul(piece, factor, out=result).round_().clamp_(lowest, highest).mul_(step)
        return out
    for piece, result in flat_blocks(x, out):
        torch.mul(piece, inverse, out=result).round_().clamp_(lowest, highest).mul_(scale)
    return out


class _StraightThrough(torch.autograd.Function):
    """Fake quantization whose gradient is 1 inside the range of codes and 0 outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, info: QInfo) -> Tensor:
        y, inside = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
        inverse = 1.0 / scale
        for piece, result, mask in [(x, y, inside)] if scale.dim() else flat_blocks(x, y, inside):
            codes = torch.mul(piece, inverse, out=result).round_()
            clamped = codes.clamp(info.quant_min, info.quant_max)
            torch.eq(codes, clamped, out=mask)
            torch.mul(clamped, scale, out=result)
        ctx.save_for_backward(inside)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None
