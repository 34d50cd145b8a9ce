"""HistogramObserver: keeps its histogram in the checkpoint, so that scales can be chosen anew without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, NotCalibratedError
from profiler.quant.affine import qinfo
from profiler.quant.observers.magnitudes import MagnitudeHistogram
from profiler.quant.observers.searching import SearchingObserver, least_error_bound

_METHODS = ("mse", "percentile")


class HistogramObserver(SearchingObserver):
    """Least squared error on a histogram that grows over all batches and is saved with the model.

    Args:
        bins: as for `SearchingObserver`.
    """

    always_whole = True
    histogram: Tensor
    histogram_start: Tensor
    histogram_absmax: Tensor

    def __init__(self, *args: Any, bins: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, bins=bins, **kwargs)
        device = self.min_val.device
        self.register_buffer("histogram", torch.zeros(0, dtype=torch.int64, device=device))
        self.register_buffer("histogram_start", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("histogram_absmax", torch.zeros((), dtype=torch.float64, device=device))

    def best_bound(self, histogram: MagnitudeHistogram) -> float:
        return least_error_bound(histogram, self.info)

    @staticmethod
    def reset_scale(
        model: nn.Module,
        method: str = "mse",
        method_kwargs: dict[str, Any] | None = None,
        dtype: str | None = None,
        prefix: str = "",
    ) -> None:
        """Choose the scales of a calibrated model anew from its histograms; no data is needed.

        Args:
            model: prepared model whose activations have this observer, calibrated or loaded.
            method: "mse", with `{"stride": 1}`; or "percentile", with `{"percentile": 0.9999}`, a fraction here.
            method_kwargs: arguments of the method.
            dtype: new dtype of these activations; None keeps theirs.
            prefix: only modules whose path begins with it.

        Raises:
            ConfigError: unknown method, dtype or argument, or no such observer.
            NotCalibratedError: a histogram is empty; the message names it.
        """
        if method not in _METHODS:
            raise ConfigError(f"method {method!r} is unknown; use one of {', '.join(_METHODS)}")
        below = [(name, m) for name, m in model.named_modules() if name.startswith(prefix) and _observer_of(m)]
        found = [(name, m) for name, m in below if not getattr(m, "is_frozen", False)]  # freeze_part keeps those
        if not below:
            raise ConfigError(f"no module below {prefix!r} has a HistogramObserver; prepare with get_qconfig() first")
        empty = [name for name, module in found if module.activation_post_process.histogram.numel() == 0]
        if empty:
            raise NotCalibratedError(f"{', '.join(empty[:8])}: the histogram is empty; calibrate first")
        for _, fake_quant in found:
            observer = _observer_of(fake_quant)
            assert observer is not None
            if dtype is not None:
                observer.dtype, (observer.quant_min, observer.quant_max) = dtype, _range(dtype)
            bound = torch.tensor(observer.bound_by(method, **(method_kwargs or {})))
            set_qparams: Any = fake_quant.set_qparams
            set_qparams(observer.scale_of(bound))

    def bound_by(self, method: str, stride: int = 1, percentile: float = 0.9999) -> float:
        """Bound that a method finds on the histogram; the percentile is a fraction."""
        if method == "mse":
            return least_error_bound(self._histograms[0], self.info, stride)
        if not 0 < percentile <= 1:
            raise ConfigError(f"percentile is {percentile}; expected a fraction in 0..1")
        return self._histograms[0].percentile(percentile * 100)

    def _absorb(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        super()._absorb(values, low, high)
        kept = self._histograms[0]
        if kept.counts is not None:
            self.histogram, self.histogram_start = kept.counts, self.histogram_start.new_tensor(kept.start)
            self.histogram_absmax = self.histogram_absmax.new_tensor(kept.absmax)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load; the number of bins is the checkpoint's, and without a histogram in it this one is empty."""
        stored = state_dict.get(prefix + "histogram")
        if stored is not None and stored.numel() and stored.numel() != self.bins:
            MagnitudeHistogram(stored.numel())  # raises where that is no number of bins
            self.bins = stored.numel()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _begin_from_bounds(self) -> None:
        super()._begin_from_bounds()
        if self.histogram.numel():
            self._prior = None
            self._histograms[0].counts, self._histograms[0].start = self.histogram, int(self.histogram_start)
            self._histograms[0].absmax = float(self.histogram_absmax)


def _observer_of(module: nn.Module) -> HistogramObserver | None:
    observer = module._modules.get("activation_post_process")
    return observer if isinstance(observer, HistogramObserver) else None


def _range(dtype: str) -> tuple[int, int]:
    info = qinfo(dtype)
    return info.quant_min, info.quant_max
