"""Pooling: max keeps codes; averages sum in integers and divide in the requantization."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.affine import round_half_even
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor
from profiler.quant.requantize import requantize

_CARRIER = torch.float64  # sums of int16 codes over any window stay far below 2**53


def avg_pool2d_codes(
    out: OutputQuant,
    input: QTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> QTensor:
    """Codes of an average pool: exact integer sums, divided and requantized in one rounding.

    Args:
        out: output scale and dtype.
        input: codes `[N, C, H, W]` or `[C, H, W]`.
        kernel_size: as torch.nn.functional.avg_pool2d, like all that follow.
        stride: step of the window.
        padding: zeros on both sides.
        ceil_mode: round the output size up.
        count_include_pad: whether padding counts in the divisor.
        divisor_override: a divisor for every window.
    """
    window = (kernel_size, stride, padding, ceil_mode)
    sums = F.avg_pool2d(input.plain.to(_CARRIER), *window, divisor_override=1)
    ones = torch.ones_like(input.plain, dtype=_CARRIER)
    mean_of_ones = F.avg_pool2d(ones, *window, count_include_pad, divisor_override)
    share = mean_of_ones / F.avg_pool2d(ones, *window, divisor_override=1).clamp_min(1)
    return out.wrap(requantize(sums, (share * (input.scale.double() / out.scale.double())).float(), out.info))


def adaptive_avg_pool2d_codes(out: OutputQuant, input: QTensor, output_size: Any) -> QTensor:
    """Codes of an adaptive average pool; windows may differ in size.

    Args:
        out: output scale and dtype.
        input: codes `[N, C, H, W]` or `[C, H, W]`.
        output_size: number or pair (None keeps a side).
    """
    means = F.adaptive_avg_pool2d(input.plain.to(_CARRIER), output_size)
    areas = _window_areas(input.plain, means.shape[-2:])
    sums = round_half_even(means * areas)
    return out.wrap(requantize(sums, (input.scale.double() / out.scale.double() / areas).float(), out.info))


def mean_codes(out: OutputQuant, input: QTensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> QTensor:
    """Codes of a mean over `dim` (a number, several, or None for all); `dtype` has no meaning for codes."""
    x = input.plain
    dims = tuple(range(x.dim())) if dim is None else tuple([dim] if isinstance(dim, int) else dim)
    count = 1
    for d in dims:
        count *= x.shape[d]
    sums = x.to(torch.int64).sum(dim=dims, keepdim=keepdim)
    return out.wrap(requantize(sums, input.scale / (out.scale * count), out.info))


def _window_areas(x: Tensor, size: torch.Size) -> Tensor:
    """Number of inputs behind each output of an adaptive pool, `[H_out, W_out]`."""
    lengths = []
    for length, outputs in zip(x.shape[-2:], size, strict=True):
        starts = torch.arange(outputs, device=x.device) * length // outputs
        ends = -((torch.arange(outputs, device=x.device) + 1) * -length // outputs)
        lengths.append((ends - starts).to(_CARRIER))
    return lengths[0][:, None] * lengths[1]


def _bind_avg_pool2d(module: nn.AvgPool2d) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return {name: getattr(module, name) for name in names}


def _mean_float(input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    return torch.mean(input, dim, keepdim, **kwargs) if dim is not None else torch.mean(input, **kwargs)


AVG_POOL2D = register(
    OpSpec("avg_pool2d", Family.FUNCTION, functions=("avg_pool2d",), modules=(nn.AvgPool2d,), bind=_bind_avg_pool2d,
           float_fn=F.avg_pool2d, integer_fn=avg_pool2d_codes, note="own output scale; all divisor rules of torch")
)  # fmt: skip
ADAPTIVE_AVG_POOL2D = register(
    OpSpec("adaptive_avg_pool2d", Family.FUNCTION, functions=("adaptive_avg_pool2d",), modules=(nn.AdaptiveAvgPool2d,),
           bind=lambda module: {"output_size": module.output_size}, float_fn=F.adaptive_avg_pool2d,
           integer_fn=adaptive_avg_pool2d_codes, note="global pooling included; windows of unequal size")
)  # fmt: skip
MEAN = register(
    OpSpec("mean", Family.FUNCTION, functions=("mean",), float_fn=_mean_float, integer_fn=mean_codes,
           note="over any dimensions")
)  # fmt: skip
