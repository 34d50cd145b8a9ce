"""Observers of the extremes: moving, limited to a window, or given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.errors import ConfigError
from profiler.quant.affine import qint16
from profiler.quant.observers.base import ObserverBase, power_of_two_above

# The clip that loses least on a Gaussian, in standard deviations: 3.92 for int8, 5.94 for int16.
_BEST_CLIP = {qint16: 6.0}


class MinMaxObserver(ObserverBase):
    """Smallest and largest value of each batch, averaged. Per tensor or per channel."""


class MovingAverageMinMaxObserver(MinMaxObserver):
    """`MinMaxObserver` per tensor only: the usual observer of activations in QAT."""

    supports_per_channel = False


class MovingAveragePerChannelMinMaxObserver(MinMaxObserver):
    """`MinMaxObserver` with one bound per channel: the usual observer of weights."""

    def __init__(self, averaging_constant: float = 0.01, ch_axis: int = 0, **kwargs: Any) -> None:
        kwargs.setdefault("qscheme", torch.per_channel_symmetric)
        super().__init__(averaging_constant, ch_axis, **kwargs)


class ClipStdObserver(ObserverBase):
    """Smallest and largest value of each batch, limited to +-k standard deviations of the batch, averaged.

    Args:
        std_scale: k; None: 4 for int8, 6 for int16, near the best clip of a Gaussian.
    """

    supports_per_channel = False

    def __init__(self, *args: Any, std_scale: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if std_scale is not None and std_scale <= 0:
            raise ConfigError(f"std_scale is {std_scale}; expected a positive number of standard deviations")
        self.std_scale = _BEST_CLIP.get(self.dtype, 4.0) if std_scale is None else std_scale

    def bounds(self, values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        limit = self.std_scale * values.std(correction=0)
        if float(limit) == 0:  # one value only: nothing to limit
            return low, high
        return torch.maximum(low, -limit), torch.minimum(high, limit)


class ClipObserver(ObserverBase):
    """Smallest and largest value of each batch, limited to a fixed window, averaged.

    Args:
        xmin: lower end of the window.
        xmax: upper end of the window.
    """

    supports_per_channel = False

    def __init__(self, *args: Any, xmin: float, xmax: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not xmin < xmax:
            raise ConfigError(f"the window is xmin={xmin}, xmax={xmax}; expected xmin < xmax")
        self.xmin, self.xmax = xmin, xmax

    def bounds(self, values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return low.clamp(self.xmin, self.xmax), high.clamp(self.xmin, self.xmax)


class FixedScaleObserver(ObserverBase):
    """Always the given scale (with `power_of_two` the next one above it); data changes nothing.

    Args:
        scale: positive number, or a tensor `[C]` with one value per channel.
        zero_point: must be 0.
    """

    scale: Tensor

    def __init__(self, *args: Any, scale: float | Tensor, zero_point: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        value = torch.as_tensor(scale, dtype=torch.float32)
        if not bool((value > 0).all()) or zero_point != 0:
            raise ConfigError(
                f"fixed scale {scale}, zero_point {zero_point}: expected a positive scale and zero_point 0"
            )
        self.register_buffer("scale", power_of_two_above(value) if self.power_of_two else value, persistent=False)

    @property
    def is_calibrated(self) -> bool:
        return True

    @property
    def is_fixed(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        """Leave the scale as it is."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The given scale and zero point 0."""
        return self.scale, torch.zeros_like(self.scale, dtype=torch.int64)

    def set_absmax(self, absmax: Tensor) -> None:
        """Keep the given scale."""

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}"
