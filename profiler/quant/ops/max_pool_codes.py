"""max_pool2d on codes: torch's own is slow on integers and refuses channels-last images of more than 127 values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.quant.blocks import is_plain_eager
from profiler.quant.ops.shape import keep_scale
from profiler.quant.qtensor import QTensor, handles

_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


@handles("max_pool2d")
def max_pool2d(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Keep the scale; codes of ordinary images go through `max_of_windows`."""
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    x = given["input"]
    is_simple = isinstance(x, QTensor) and x.holds_codes and is_plain_eager(x.plain)
    if not is_simple or x.dim() != 4 or not x.numel() or given.get("ceil_mode") or given.get("return_indices"):
        return _by_torch(func, args, kwargs)
    kernel = _pair(given["kernel_size"])
    stride, padding = _pair(given.get("stride") or kernel), _pair(given.get("padding", 0))
    dilation = _pair(given.get("dilation", 1))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if any(2 * p > k or n + 2 * p < r for p, k, n, r in zip(padding, kernel, x.shape[2:], reach, strict=True)):
        return _by_torch(func, args, kwargs)  # for torch's error
    return x.like(max_of_windows(x.plain, kernel, stride, padding, dilation))


def _by_torch(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Torch's own kernel, which takes integers in the plain layout."""

    def in_rows(value: Any) -> Any:
        is_image = isinstance(value, QTensor) and value.holds_codes and value.dim() in (3, 4)
        return value.like(value.plain.contiguous()) if is_image else value

    return keep_scale(func, tuple(in_rows(a) for a in args), {name: in_rows(a) for name, a in kwargs.items()})


def max_of_windows(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Largest code of each window, first along one axis, then along the other.

    Args:
        x: integer codes `[N, C, H, W]`.
        kernel: height and width of a window.
        stride: step of the windows.
        padding: how far the windows reach over each end.
        dilation: distance of the codes within a window.

    Returns:
        `[N, C, H', W']` of x's dtype and layout.
    """
    (top, left), lowest = padding, torch.iinfo(x.dtype).min
    x = F.pad(x, (left, left, top, top), value=lowest) if top or left else x
    for axis in (2, 3):
        pieces = _shifted(x, axis, kernel[axis - 2], stride[axis - 2], dilation[axis - 2])
        best = next(pieces)
        for i, piece in enumerate(pieces):
            best = torch.maximum(best, piece, out=best) if i else torch.maximum(best, piece)
        x = best
    return x


def _shifted(x: Tensor, axis: int, size: int, stride: int, dilation: int) -> Iterator[Tensor]:
    """For each place in a window, its code in every window along one axis."""
    windows = (x.shape[axis] - dilation * (size - 1) - 1) // stride + 1
    for place in range(size):
        start = place * dilation
        slices = [slice(None)] * x.dim()
        slices[axis] = slice(start, start + (windows - 1) * stride + 1, stride)
        yield x[tuple(slices)]


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)
