"""Observers: from the tensors that pass to a scale."""

from __future__ import annotations

from profiler.errors import ConfigError
from profiler.quant.observers.base import ObserverBase
from profiler.quant.observers.extremes import (
    ClipObserver,
    ClipStdObserver,
    FixedScaleObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from profiler.quant.observers.histogram import HistogramObserver
from profiler.quant.observers.searching import (
    KLObserver,
    MixObserver,
    MSEObserver,
    PercentileObserver,
    SearchingObserver,
)

__all__ = [
    "OBSERVERS",
    "ClipObserver",
    "ClipStdObserver",
    "FixedScaleObserver",
    "HistogramObserver",
    "KLObserver",
    "MSEObserver",
    "MinMaxObserver",
    "MixObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "ObserverBase",
    "PercentileObserver",
    "SearchingObserver",
    "observer_class",
]

OBSERVERS: dict[str, type[ObserverBase]] = {
    "min_max": MinMaxObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
    "kl": KLObserver,
    "mix": MixObserver,
    "clip_std": ClipStdObserver,
    "clip": ClipObserver,
    "fixed_scale": FixedScaleObserver,
    "histogram": HistogramObserver,
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
