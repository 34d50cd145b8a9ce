"""Pooling: averages sum windows of codes exactly and divide in the requantization; max keeps codes (shape.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.geometry import outer_product, positions, product_along, sizes_of
from profiler.quant.ops.lookup import cached
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor
from profiler.quant.requantize import carrier_dtype, requantize
from profiler.quant.tracing import not_traced


@dataclass(frozen=True)
class Windows:
    """The pooling windows along one axis.

    Attributes:
        starts: first input of each window, inside the input.
        ends: one past the last input of each window, inside the input.
        sizes: what each window counts as its length (padding included where torch counts it).
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    sizes: tuple[int, ...]


def sliding_windows(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool, counts_pad: bool) -> Windows:
    """Windows of a plain average pool along an axis of `length`."""
    span = length + 2 * padding - kernel
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= length + padding:
        count -= 1  # the last window must start inside the input or its left padding
    firsts = [i * stride - padding for i in range(count)]
    starts = [max(first, 0) for first in firsts]
    ends = [min(first + kernel, length) for first in firsts]
    counted = [min(first + kernel, length + padding) - first for first in firsts]
    inside = [end - start for start, end in zip(starts, ends, strict=True)]
    return Windows(tuple(starts), tuple(ends), tuple(counted if counts_pad else inside))


def adaptive_windows(length: int, count: int) -> Windows:
    """`count` windows that cover an axis of `length`, as torch's adaptive pools lay them out."""
    starts = tuple(i * length // count for i in range(count))
    ends = tuple(-(-(i + 1) * length // count) for i in range(count))
    return Windows(starts, ends, tuple(e - s for s, e in zip(starts, ends, strict=True)))


def window_sums(x: Tensor, windows: Sequence[Windows]) -> Tensor:
    """Sums over the windows of the last axes, one `Windows` per axis.

    Args:
        x: integer codes.
        windows: for each of the last `len(windows)` axes.

    Returns:
        Exact sums, carried by float32 below 2**24 (the largest code times the largest window), else by float64.
    """
    area = math.prod(max((e - s for s, e in zip(w.starts, w.ends, strict=True)), default=0) for w in windows)
    sums = x.to(carrier_dtype(-torch.iinfo(x.dtype).min * area))
    for position, window in enumerate(windows):
        sums = _sums_along(sums, x.dim() - len(windows) + position, window)
    return sums


def _sums_along(x: Tensor, axis: int, window: Windows) -> Tensor:
    length = sizes_of(x)[axis]
    if window.starts == (0,) and window.ends == (length,):
        return x.sum(axis, keepdim=True)
    if window.starts == tuple(range(length)) and window.ends == tuple(range(1, length + 1)):
        return x
    return product_along(x, axis, _membership(x, length, window))


@not_traced
def _membership(x: Tensor, length: int, window: Windows) -> Tensor:
    """1 where an input belongs to a window, else 0: `[inputs, windows]`."""
    places = torch.arange(length, device=x.device)[:, None]
    return ((places >= positions(window.starts, x)) & (places < positions(window.ends, x))).to(x.dtype)


def _averaged(out: OutputQuant, input: QTensor, windows: Sequence[Windows], divisor: int | None = None) -> QTensor:
    """Codes of window averages: one requantization by `scale ratio / window size`."""
    return out.wrap(requantize(window_sums(input.plain, windows), _multiplier(out, input, windows, divisor), out.info))


@not_traced
@torch.no_grad()
def _multiplier(out: OutputQuant, input: QTensor, windows: Sequence[Windows], divisor: int | None) -> Tensor:
    def make() -> Tensor:
        ratio = input.scale.double() / out.scale.double()
        areas = divisor if divisor is not None else outer_product([window.sizes for window in windows], ratio)
        return (ratio / areas).to(torch.float32)

    key = ("average", float(input.scale), float(out.scale), str(input.device), tuple(windows), divisor)
    return cached(out, key, make, most=8)  # one for each size of the input


def _avg_pool(num_spatial: int) -> Callable[..., QTensor]:
    def codes(
        out: OutputQuant,
        input: QTensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> QTensor:
        """Codes of an average pool; arguments as torch.nn.functional.avg_pool2d takes them."""
        kernels = _per_axis(kernel_size, num_spatial)
        strides = kernels if stride in (None, ()) else _per_axis(stride, num_spatial)
        geometry = zip(sizes_of(input)[-num_spatial:], kernels, strides, _per_axis(padding, num_spatial), strict=True)
        windows = [sliding_windows(*axis, ceil_mode, count_include_pad) for axis in geometry]
        return _averaged(out, input, windows, divisor_override)

    return codes


def _adaptive_avg_pool(num_spatial: int) -> Callable[..., QTensor]:
    def codes(out: OutputQuant, input: QTensor, output_size: Any) -> QTensor:
        """Codes of an adaptive average pool; windows may differ in size, None keeps an axis."""
        lengths = sizes_of(input)[-num_spatial:]
        sizes = _per_axis(output_size, num_spatial)
        return _averaged(
            out,
            input,
            [adaptive_windows(n, n if size is None else size) for n, size in zip(lengths, sizes, strict=True)],
        )

    return codes


def _per_axis(value: Any, num_spatial: int) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        return (value,) * num_spatial
    return tuple(value) if len(value) == num_spatial else tuple(value) * num_spatial


def mean_codes(out: OutputQuant, input: QTensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> QTensor:
    """Codes of a mean over `dim` (a number, several, or None for all); `dtype` has no meaning for codes."""
    x = input.plain
    dims = tuple(range(x.dim())) if dim is None else tuple([dim] if isinstance(dim, int) else dim)
    count = math.prod(x.shape[d] for d in dims)
    sums = x.to(torch.int64).sum(dim=dims, keepdim=keepdim)
    return out.wrap(requantize(sums, input.scale / (out.scale * count), out.info))


def _mean_float(input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    return torch.mean(input, dim, keepdim, **kwargs) if dim is not None else torch.mean(input, **kwargs)


def _bind_avg_pool(module: Any) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def _register_average(num_spatial: int, plain: type[nn.Module], adaptive: type[nn.Module]) -> tuple[OpSpec, OpSpec]:
    name, adaptive_name = f"avg_pool{num_spatial}d", f"adaptive_avg_pool{num_spatial}d"
    return (
        register(
            OpSpec(name, Family.FUNCTION, functions=(name,), modules=(plain,), bind=_bind_avg_pool,
                   float_fn=getattr(F, name), integer_fn=_avg_pool(num_spatial),
                   note="own output scale; all divisor rules of torch")
        ),
        register(
            OpSpec(adaptive_name, Family.FUNCTION, functions=(adaptive_name,), modules=(adaptive,),
                   bind=lambda module: {"output_size": module.output_size}, float_fn=getattr(F, adaptive_name),
                   integer_fn=_adaptive_avg_pool(num_spatial),
                   note="global pooling included; windows of unequal size")
        ),
    )  # fmt: skip


AVG_POOL1D, ADAPTIVE_AVG_POOL1D = _register_average(1, nn.AvgPool1d, nn.AdaptiveAvgPool1d)
AVG_POOL2D, ADAPTIVE_AVG_POOL2D = _register_average(2, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
AVG_POOL3D, ADAPTIVE_AVG_POOL3D = _register_average(3, nn.AvgPool3d, nn.AdaptiveAvgPool3d)
MEAN = register(
    OpSpec("mean", Family.FUNCTION, functions=("mean",), float_fn=_mean_float, integer_fn=mean_codes,
           note="over any dimensions")
)  # fmt: skip
