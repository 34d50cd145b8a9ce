"""Exact sums of integer products by the CPU's 8-bit kernels, where they are there and proven exact."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from profiler.quant.requantize import FLOAT32_EXACT

_LOG = logging.getLogger(__name__)
_SIGN = 128


@dataclass(frozen=True)
class Geometry:
    """What a 2-d convolution does besides its weight; a linear op is a 1x1 convolution."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class _Product:
    """One convolution of unsigned bytes with int8 weights, its exact int32 sums converted to float32.

    With all scales 1 the kernel returns `float32(sum) + bias`: exact integers while the sum and the result stay below
    2**24, which is for the caller to see to.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, zero_point: int, geometry: Geometry) -> None:
        self._ops = torch.ops.onednn
        self._run = getattr(self._ops, "qconv2d_pointwise", None) or self._ops.qconv_pointwise
        self._zero_point, self._bias = zero_point, bias
        self._ones = torch.ones(weight.shape[0])
        self._zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
        self._where = (list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups)
        with torch._C.DisableTorchFunction():  # packed weights are opaque: nobody who watches functions can read them
            self._packed = self._ops.qconv_prepack(weight, self._ones, 1.0, zero_point, *self._where, None)

    def __call__(self, x: Tensor) -> Tensor:
        """Sums `[N, C, H, W]` float32 of bytes `[N, C, H, W]` that lie channels last."""
        with torch._C.DisableTorchFunction():
            result: Tensor = self._run(
                x, 1.0, self._zero_point, self._packed, self._ones, self._zeros, self._bias, *self._where,
                1.0, 0, torch.float32, "none", [], "",
            )  # fmt: skip
        return result.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class ExactSums:
    """The accumulator of a weighted op as parts that are exact in float32, `[N, C, H, W]` each.

    Either one part that holds the bias and leaves room for what else is added, or several that have to be added in
    float64, each times its worth, together with `bias` `[C]` (float64).
    """

    parts: tuple[tuple[Callable[[Tensor], Tensor], int], ...]
    bias: Tensor | None = None

    @property
    def is_single(self) -> bool:
        """Whether everything is exact in float32."""
        return self.bias is None


def exact_sums(
    weight: Tensor, bias: Tensor | None, geometry: Geometry, x_dtype: torch.dtype, room: float
) -> ExactSums | None:
    """How to compute a product exactly with 8-bit kernels.

    Args:
        weight: codes `[C, C_in / groups, kH, kW]` int8.
        bias: whole numbers `[C]` float64, or None.
        geometry: stride, padding, dilation, groups.
        x_dtype: int8 or int16 codes.
        room: largest magnitude of what is added to the sums and the bias.

    Returns:
        The functions, or None where the kernels are missing, not exact, or sum too many products for float32.
    """
    if weight.dtype is not torch.int8 or weight.device.type != "cpu" or weight.numel() == 0 or not kernels_are_exact():
        return None
    weight = weight.contiguous()
    if bias is None:
        bias = torch.zeros(weight.shape[0], dtype=torch.float64)
    if x_dtype is torch.int8 and _fits(_sums_of_magnitudes(weight) * 128 + bias.abs() + room):
        return ExactSums(((_on_signed_bytes(_Product(weight, bias.float(), _SIGN, geometry)), 1),))
    parts: list[tuple[Callable[[Tensor], Tensor], int]] = []
    for start, stop in _channel_ranges(weight, geometry.groups, 128 if x_dtype is torch.int8 else 255):
        signed = _Product(weight[:, start:stop].contiguous(), None, _SIGN, geometry)
        if x_dtype is torch.int8:
            of_range = [(_on_signed_bytes(signed), 1)]
        else:
            unsigned = _Product(weight[:, start:stop].contiguous(), None, 0, geometry)
            of_range = [(_on_lower_bytes(unsigned), 1), (_on_upper_bytes(signed), 256)]
        is_whole = geometry.groups > 1 or stop - start == weight.shape[1]
        parts += of_range if is_whole else [(_on_channels(f, start, stop), worth) for f, worth in of_range]
    return ExactSums(tuple(parts), bias) if parts else None


def _channel_ranges(weight: Tensor, groups: int, largest_code: int) -> list[tuple[int, int]]:
    """Ranges of input channels whose sums stay below 2**24; none where that takes more than 8, or splits a group."""
    channels = weight.shape[1]
    for num in range(1, 9 if groups == 1 else 2):
        size = -(-channels // num)
        ranges = [(start, min(start + size, channels)) for start in range(0, channels, size)]
        if all(_fits(_sums_of_magnitudes(weight[:, start:stop]) * largest_code) for start, stop in ranges):
            return ranges
    return []


def _on_channels(function: Callable[[Tensor], Tensor], start: int, stop: int) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x[:, start:stop])


def _on_lower_bytes(product: _Product) -> Callable[[Tensor], Tensor]:
    """The lower bytes of int16 codes, which are 256 * upper + lower."""
    return lambda x: product(_last((x & 255).to(torch.uint8)))


def _on_upper_bytes(product: _Product) -> Callable[[Tensor], Tensor]:
    """The upper bytes of int16 codes, worth 256 each."""
    return lambda x: product(_last(((x >> 8) + _SIGN).to(torch.uint8)))


def _on_signed_bytes(product: _Product) -> Callable[[Tensor], Tensor]:
    """int8 codes as the bytes `code + 128`, which the kernel's zero point takes off again."""
    return lambda x: product(_last(x).view(torch.uint8).bitwise_xor(_SIGN))


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _sums_of_magnitudes(weight: Tensor) -> Tensor:
    return weight.double().abs().reshape(weight.shape[0], -1).sum(1)


def _fits(bound: Tensor) -> bool:
    return float(bound.max()) < FLOAT32_EXACT


@functools.cache
def kernels_are_exact() -> bool:
    """Whether this torch on this CPU has the kernels and they sum extreme codes without saturating.

    Without VNNI some 8-bit kernels add pairs of products in 16 bits.
    """
    try:
        return all(_is_exact(*case) for case in _PROBES)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        _LOG.debug("8-bit kernels are not used: %s", error)
        return False


# input channels, output channels, kernel size, groups
_PROBES = ((64, 32, 1, 1), (32, 64, 3, 1), (3, 5, 3, 1), (32, 32, 3, 32), (6, 4, 3, 2))


def _is_exact(cin: int, cout: int, size: int, groups: int) -> bool:
    """Compare one shape with float64 on codes at both ends of their range."""
    geometry = Geometry(padding=(size // 2, size // 2), groups=groups)
    ends = torch.tensor([-128, 127], dtype=torch.int8)
    generator = torch.Generator().manual_seed(0)
    for only_extremes in (True, False):
        x, weight = (
            ends[torch.randint(2, shape, generator=generator) * (0 if only_extremes else 1)]
            for shape in ((2, cin, 6, 5), (cout, cin // groups, size, size))
        )
        expected = torch.conv2d(x.double(), weight.double(), None, 1, geometry.padding, 1, groups)
        if not torch.equal(_on_signed_bytes(_Product(weight, None, _SIGN, geometry))(x).double(), expected):
            return False
    return True
