"""Observers that look for the best bound: percentile, mse, kl, mix, on a histogram of magnitudes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from profiler.errors import ConfigError
from profiler.quant.affine import QInfo
from profiler.quant.observers.base import ObserverBase
from profiler.quant.observers.magnitudes import MagnitudeHistogram

_MIX_PERCENTILES = (99.9, 99.95, 99.99, 99.995, 99.999, 99.9995, 99.9999, 100.0)
_KL_LEVELS = 128


class SearchingObserver(ObserverBase):
    """Chooses a bound on a histogram of magnitudes.

    With `plain_mean` (the calib qconfigs) the histogram grows over all batches and the bound is chosen on the whole: a
    mean of bounds that each fit one batch clips every batch with larger values, and small tensors, which differ most
    from batch to batch, suffer most. Bounds that were loaded or given by hand go into the mean as 1/c batches. Without
    `plain_mean` (QAT, where the weights move) each batch has its own bound and the bounds are averaged.

    Args:
        bins: buckets of the histogram, a power of two; 16 octaves of bins / 16 each.
    """

    supports_per_channel = False
    always_whole: ClassVar[bool] = False
    sample_limit: ClassVar[int | None] = None

    def __init__(self, *args: Any, bins: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bins = bins
        self._histograms = [MagnitudeHistogram(bins)]
        self._prior: Tensor | None = None

    def best_bound(self, histogram: MagnitudeHistogram) -> float:
        """The bound to use for the counted values."""
        raise NotImplementedError

    def _absorb(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        absmax = torch.maximum(low.abs(), high.abs())
        if not (self.plain_mean or self.always_whole):
            bound = self._bound_of([MagnitudeHistogram(self.bins) for _ in range(absmax.numel())], values, absmax)
            self._update(-bound, bound)
            return
        if self.averaging_constant == 0 and self.is_calibrated:
            return
        if len(self._histograms) != absmax.numel():
            self._histograms = [MagnitudeHistogram(self.bins) for _ in range(absmax.numel())]
        bound = self._bound_of(self._histograms, values, absmax)
        self.num_batches += 1
        if self._prior is not None:
            weight = self.num_batches / (self.num_batches + 1 / self.averaging_constant)
            bound = self._prior + weight * (bound - self._prior)
        self.min_val, self.max_val = -bound, bound

    def _bound_of(self, histograms: list[MagnitudeHistogram], values: Tensor, absmax: Tensor) -> Tensor:
        channels = [values] if self.ch_axis < 0 else values.unbind(self.ch_axis)
        for histogram, channel, largest in zip(histograms, channels, absmax.reshape(-1).tolist(), strict=True):
            histogram.add(channel, largest, self.sample_limit)
        found = [self.best_bound(histogram) for histogram in histograms]
        return torch.tensor(found, dtype=torch.float32, device=values.device).reshape(absmax.shape)

    def _begin_from_bounds(self) -> None:
        super()._begin_from_bounds()
        self.num_batches = 0
        self._histograms = [MagnitudeHistogram(self.bins) for _ in self._histograms]
        has_weight = self.is_calibrated and self.averaging_constant > 0
        self._prior = torch.maximum(self.min_val.abs(), self.max_val.abs()) if has_weight else None


class PercentileObserver(SearchingObserver):
    """Bound below which `percentile` percent of the magnitudes lie, linear inside its bucket.

    Args:
        percentile: 0 < percentile <= 100, in percent.
        bins: as for `SearchingObserver`.
    """

    def __init__(self, *args: Any, percentile: float = 99.99, bins: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, bins=bins, **kwargs)
        if not 0 < percentile <= 100:
            raise ConfigError(f"percentile is {percentile}; expected a value in 0..100 (percent)")
        self.percentile = percentile

    def best_bound(self, histogram: MagnitudeHistogram) -> float:
        return histogram.percentile(self.percentile)


class MSEObserver(SearchingObserver):
    """Bound k/100 of the largest magnitude, k = 100, 100 - stride, ..., that gives the least squared error.

    Args:
        stride: step of k, 1..20.
        bins: as for `SearchingObserver`. Of tensors with more than 2**18 values every n-th is counted.
    """

    supports_per_channel = True
    sample_limit = 2**18

    def __init__(self, *args: Any, stride: int = 1, bins: int = 16384, **kwargs: Any) -> None:
        super().__init__(*args, bins=bins, **kwargs)
        if not 1 <= stride <= 20:
            raise ConfigError(f"stride is {stride}; expected 1..20")
        self.stride = stride

    def best_bound(self, histogram: MagnitudeHistogram) -> float:
        return least_error_bound(histogram, self.info, self.stride)


class MixObserver(SearchingObserver):
    """Of the percentiles 99.9 to 100 the one whose bound gives the least squared error."""

    def best_bound(self, histogram: MagnitudeHistogram) -> float:
        bounds = [histogram.percentile(p) for p in reversed(_MIX_PERCENTILES)]
        return _least(histogram, torch.tensor(bounds, dtype=torch.float64), self.info)


def least_error_bound(histogram: MagnitudeHistogram, info: QInfo, stride: int = 1) -> float:
    """Bound k/100 of the largest magnitude, k = 100, 100 - stride, ..., with the least squared error."""
    steps = torch.arange(100, 0, -stride, dtype=torch.float64)
    return _least(histogram, histogram.absmax * steps / 100, info)


def _least(histogram: MagnitudeHistogram, bounds: Tensor, info: QInfo) -> float:
    if histogram.counts is None or histogram.absmax == 0:
        return 0.0
    errors = histogram.squared_errors(bounds.to(histogram.counts.device), info)
    return float(bounds[int(errors.argmin())])


class KLObserver(SearchingObserver):
    """Bound with the least KL divergence between the clipped histogram and its version in 128 levels.

    The histogram grows over all batches, in QAT too. int16 has more levels than the histogram has bins, so nothing is
    clipped there.

    Args:
        bins: equal bins over [0, absmax] for the search, at least 128.
        update_interval: the bound is chosen at the first batch and every so many batches.

    Source:
        S. Migacz, 8-bit Inference with TensorRT, GTC 2017.
    """

    always_whole = True

    def __init__(self, *args: Any, bins: int = 512, update_interval: int = 1, **kwargs: Any) -> None:
        if bins < _KL_LEVELS or update_interval < 1:
            raise ConfigError(f"bins={bins}, update_interval={update_interval}; expected bins >= 128, an interval >= 1")
        super().__init__(*args, bins=8192, **kwargs)
        self.search_bins, self.update_interval = bins, update_interval

    def best_bound(self, histogram: MagnitudeHistogram) -> float:
        is_due = self.num_batches == 0 or (self.num_batches + 1) % self.update_interval == 0
        if self.is_calibrated and not is_due and self._prior is None:
            return float(self.max_val)
        if self.info.quant_max >= self.search_bins or histogram.absmax == 0:
            return histogram.absmax
        counts = histogram.linear(self.search_bins)
        kept = _KL_LEVELS + int(kl_of_clipping(counts, _KL_LEVELS).argmin())
        return histogram.absmax * kept / self.search_bins


def kl_of_clipping(counts: Tensor, levels: int) -> Tensor:
    """KL divergence of a histogram clipped to its first i bins from its version in `levels` levels.

    Args:
        counts: `[B]` non-negative counts, float64.
        levels: number of levels that the kept bins are merged into; a level spreads evenly over its non-empty bins.

    Returns:
        `[B - levels + 1]` divergences in nats for i = levels ... B. What lies beyond bin i counts in the last kept one;
        the merged version does not have it, which is the price of clipping. Where it has nothing at all it gets
        1e-4, so that a gap before an outlier does not forbid clipping it.
    """
    bins = counts.numel()
    kept = torch.arange(levels, bins + 1, device=counts.device)[:, None]
    index = torch.arange(bins, device=counts.device)[None, :]
    inside = (index < kept).to(counts.dtype) * counts
    beyond = counts.sum() - inside.sum(1, keepdim=True)
    level = (index * levels // kept).clamp_max(levels - 1)
    merged = torch.zeros(kept.numel(), levels, dtype=counts.dtype, device=counts.device)
    filled = merged.scatter_add(1, level, (inside > 0).to(counts.dtype))
    merged = merged.scatter_add(1, level, inside)
    q = torch.where(inside > 0, (merged / filled.clamp_min(1)).gather(1, level), 0.0)
    p = inside + beyond * (index == kept - 1)
    p = p / p.sum(1, keepdim=True)
    q = q / q.sum(1, keepdim=True).clamp_min(1e-300)
    q = torch.where((p > 0) & (q == 0), 1e-4, q)
    q = q / q.sum(1, keepdim=True)
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(1)
