"""Observers: from the tensors that pass to a scale."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError, NotCalibratedError
from profiler.quant.affine import QInfo, qinfo, scale_from_absmax
from profiler.quant.requantize import FLOAT32_EXACT


class ObserverBase(nn.Module):
    """Keeps a moving average of the bounds of what passes.

    `new = old + c * (batch - old)` with `c = averaging_constant`; the first batch sets the value,
    c = 0 then freezes it.
    With `plain_mean` (the calib qconfigs) the weight of batch t is max(c, 1/t), a plain mean for the first 1/c batches.

    Args:
        averaging_constant: weight of a new batch, 0..1.
        ch_axis: channel axis for per-channel bounds, -1 for one bound per tensor.
        dtype: quantized dtype name, for example "qint8".
        qscheme: torch.per_tensor_symmetric or torch.per_channel_symmetric.
        quant_min: smallest code; the dtype's own if None.
        quant_max: largest code; the dtype's own if None.
        is_sync_quantize: False; one process is supported.
        factory_kwargs: `device` of the buffers.
        plain_mean: average the first batches plainly.

    Raises:
        ConfigError: an argument is out of its range, or the observer cannot work per channel.
    """

    supports_per_channel: ClassVar[bool] = True
    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int = -1,
        dtype: str = "qint8",
        qscheme: torch.qscheme = torch.per_tensor_symmetric,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_sync_quantize: bool = False,
        factory_kwargs: dict[str, Any] | None = None,
        plain_mean: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= averaging_constant <= 1:
            raise ConfigError(f"averaging_constant is {averaging_constant}; expected a value in 0..1")
        if is_sync_quantize:
            raise ConfigError("is_sync_quantize=True is not supported; calibrate in one process")
        if ch_axis >= 0 and not self.supports_per_channel:
            raise ConfigError(f"{type(self).__name__} works per tensor only; got ch_axis={ch_axis}, use min_max or mse")
        if qscheme not in (torch.per_tensor_symmetric, torch.per_channel_symmetric):
            raise ConfigError(f"qscheme is {qscheme}; expected torch.per_tensor_symmetric or per_channel_symmetric")
        self.averaging_constant = averaging_constant
        self.ch_axis, self.dtype, self.qscheme = ch_axis, dtype, qscheme
        info = qinfo(dtype)
        self.quant_min = info.quant_min if quant_min is None else quant_min
        self.quant_max = info.quant_max if quant_max is None else quant_max
        self.plain_mean = plain_mean
        self.num_batches = 0
        device = (factory_kwargs or {}).get("device")
        self.register_buffer("min_val", torch.tensor([], device=device))
        self.register_buffer("max_val", torch.tensor([], device=device))

    @classmethod
    def with_args(cls, **kwargs: Any) -> partial[ObserverBase]:
        """A factory of this observer with these arguments."""
        return partial(cls, **kwargs)

    @property
    def info(self) -> QInfo:
        """Code range of this observer's quantizer."""
        own = qinfo(self.dtype)
        return QInfo(own.name, self.quant_min, self.quant_max, own.torch_dtype)

    @property
    def is_calibrated(self) -> bool:
        """Whether a scale is known, from data or given."""
        return self.min_val.numel() > 0

    @property
    def is_fixed(self) -> bool:
        """Whether the scale was given and no data changes it."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """Update the bounds from one batch; empty tensors change nothing.

        Raises:
            ModelError: the batch holds NaN or Inf.
        """
        if x.numel() == 0:
            return x
        values = x.detach().to(torch.float32)
        low, high = self._extremes(values)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise ModelError(
                "a tensor to be observed holds NaN or Inf, so no scale can be made from it; check masks, divisions "
                "and the data before calibration"
            )
        self._update(*self.bounds(values, low, high))
        return x

    def bounds(self, values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bound to use for one batch, from its values and its extremes."""
        return low, high

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point (0) of the bounds seen so far.

        Raises:
            NotCalibratedError: nothing was observed.
        """
        if not self.is_calibrated:
            raise NotCalibratedError(f"{type(self).__name__} has observed no data; calibrate first")
        absmax = torch.maximum(self.min_val.abs(), self.max_val.abs())
        scale = scale_from_absmax(absmax, self.quant_min, self.quant_max)
        return scale, torch.zeros_like(scale, dtype=torch.int64)

    def set_absmax(self, absmax: Tensor) -> None:
        """Replace the bounds by +-absmax."""
        self.min_val, self.max_val = -absmax.to(torch.float32), absmax.to(torch.float32)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val!r}, max_val={self.max_val!r}"

    def _extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.ch_axis < 0:
            low, high = torch.aminmax(values)
            return low, high
        rows = values.transpose(0, self.ch_axis).reshape(values.shape[self.ch_axis], -1)
        low, high = torch.aminmax(rows, dim=1)
        return low, high

    def _update(self, low: Tensor, high: Tensor) -> None:
        self.num_batches += 1
        if not self.is_calibrated:
            self.min_val, self.max_val = low.clone(), high.clone()
            return
        weight = self.averaging_constant
        if self.plain_mean and weight > 0:
            weight = max(weight, 1.0 / self.num_batches)
        self.min_val = self.min_val + weight * (low - self.min_val)
        self.max_val = self.max_val + weight * (high - self.max_val)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("min_val", "max_val"):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)


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


class PercentileObserver(ObserverBase):
    """Bound below which `percentile` percent of the magnitudes of a batch lie, linear inside its histogram bin.

    Args:
        percentile: 0 < percentile <= 100, in percent.
        bins: bins of the histogram of magnitudes.
    """

    supports_per_channel = False

    def __init__(self, *args: Any, percentile: float = 99.99, bins: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < percentile <= 100:
            raise ConfigError(f"percentile is {percentile}; expected a value in 0..100 (percent)")
        self.percentile, self.bins = percentile, bins

    def bounds(self, values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        absmax = torch.maximum(low.abs(), high.abs())
        if float(absmax) == 0:
            return low, high
        counts = magnitude_histogram(values, absmax, self.bins)
        cumulated = counts.cumsum(0)
        wanted = self.percentile / 100 * float(cumulated[-1])
        index = min(int(torch.searchsorted(cumulated, wanted)), self.bins - 1)
        before = float(cumulated[index - 1]) if index else 0.0
        inside = (wanted - before) / max(float(counts[index]), 1.0)
        bound = absmax * ((index + min(inside, 1.0)) / self.bins)
        return -bound, bound


class MSEObserver(ObserverBase):
    """Bound k/100 of the largest magnitude, k = 100, 100 - stride, ..., that gives the least squared error.

    The error of a candidate is summed over a histogram of magnitudes: clipping beyond the bound, rounding inside it.

    Args:
        stride: step of k, 1..20.
        bins: bins of the histogram.
    """

    def __init__(self, *args: Any, stride: int = 1, bins: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 1 <= stride <= 20:
            raise ConfigError(f"stride is {stride}; expected 1..20")
        self.stride, self.bins = stride, bins

    def bounds(self, values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        absmax = torch.maximum(low.abs(), high.abs())
        if self.ch_axis < 0:
            bound = self._best_bound(values, absmax)
        else:
            channels = values.unbind(self.ch_axis)
            bound = torch.stack([self._best_bound(v, a) for v, a in zip(channels, absmax, strict=True)])
        return -bound, bound

    def _best_bound(self, values: Tensor, absmax: Tensor) -> Tensor:
        if float(absmax) == 0:
            return absmax
        counts = magnitude_histogram(values, absmax, self.bins)
        steps = torch.arange(100, 0, -self.stride, device=values.device, dtype=torch.float64)
        bounds = absmax.double() * steps / 100
        errors = squared_error_of_bounds(counts, float(absmax), bounds, self.info)
        return bounds[int(errors.argmin())].to(torch.float32)


def magnitude_histogram(values: Tensor, absmax: Tensor, bins: int) -> Tensor:
    """Counts of |values| in `bins` equal bins over [0, absmax], float64; exact zeros are left out.

    A zero is represented exactly at any scale, so it has no say in the choice of a bound.
    """
    magnitudes = values.abs().flatten()
    counts = torch.zeros(bins, dtype=torch.float64, device=values.device)
    for part in torch.split(magnitudes, FLOAT32_EXACT):  # histc counts in float32
        counts += torch.histc(part, bins=bins, min=0.0, max=float(absmax))
    counts[0] -= (magnitudes == 0).sum()
    return counts


def squared_error_of_bounds(counts: Tensor, absmax: float, bounds: Tensor, info: QInfo) -> Tensor:
    """Squared quantization error for each candidate bound, from a histogram of magnitudes.

    Args:
        counts: `[bins]` counts of magnitudes over [0, absmax].
        absmax: upper edge of the histogram.
        bounds: `[K]` candidate bounds, float64.
        info: code range.

    Returns:
        `[K]` sums of squared errors. Inside the range the bin centres are quantized when the bins are finer than the
        steps; otherwise the error is the mean square of rounding, scale^2 / 12.
    """
    bins = counts.numel()
    centres = (torch.arange(bins, device=counts.device, dtype=torch.float64) + 0.5) * (absmax / bins)
    scales = (bounds / info.half_range)[:, None]
    codes = torch.round(centres / scales)
    clipped = (centres - codes.clamp_max(info.quant_max) * scales) ** 2
    rounding = clipped if bins >= 8 * info.half_range else scales.expand_as(clipped) ** 2 / 12
    errors = torch.where(codes > info.quant_max, clipped, rounding)
    return errors @ counts


class FixedScaleObserver(ObserverBase):
    """Always the given scale; data changes nothing.

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
        self.register_buffer("scale", value, persistent=False)

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


OBSERVERS: dict[str, type[ObserverBase]] = {
    "min_max": MinMaxObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
    "fixed_scale": FixedScaleObserver,
}


def observer_class(key: str | type[ObserverBase]) -> type[ObserverBase]:
    """Observer of a qconfig key such as "min_max".

    Raises:
        ConfigError: no observer has this key; the message lists the keys.
    """
    if isinstance(key, type) and issubclass(key, ObserverBase):
        return key
    if key not in OBSERVERS:
        raise ConfigError(f"observer {key!r} is unknown; use one of {', '.join(OBSERVERS)}, or an observer class")
    return OBSERVERS[str(key)]
