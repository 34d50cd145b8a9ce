"""The metrics of a pair of tensors: name, unit, direction and default limit of each."""

from __future__ import annotations

from profiler.errors import RegistryError
from profiler.records import MetricInfo

_METRICS: dict[str, MetricInfo] = {}


def register(info: MetricInfo) -> MetricInfo:
    """Add a metric.

    Raises:
        RegistryError: the name is taken.
    """
    if info.name in _METRICS:
        raise RegistryError(f"metric {info.name!r} is registered twice")
    _METRICS[info.name] = info
    return info


def get_metric(name: str) -> MetricInfo:
    """Metric by name.

    Raises:
        RegistryError: no such metric; the message lists them.
    """
    if name not in _METRICS:
        raise RegistryError(f"metric {name!r} is not registered; there are {', '.join(_METRICS)}")
    return _METRICS[name]


def all_metrics() -> tuple[MetricInfo, ...]:
    """Every metric, in the order of registration."""
    return tuple(_METRICS.values())


COSINE = register(MetricInfo("cosine", "", True, 0.995, "cosine of the angle between reference and test, flattened"))
SQNR = register(MetricInfo("sqnr_db", "dB", True, 20.0, "10 log10(sum reference^2 / sum error^2)"))
MSE = register(MetricInfo("mse", "", False, None, "mean squared error"))
L1 = register(MetricInfo("l1", "", False, None, "mean absolute error"))
ATOL = register(MetricInfo("atol", "", False, None, "largest absolute error"))
KL = register(
    MetricInfo("kl", "nats", False, 0.2, "KL(reference || test) of counts in 16 bins of equal reference mass")
)
ATOL_SCALES = register(MetricInfo("atol_scales", "scales", False, 5.0, "largest absolute error in output scales"))
RMS_LSB = register(MetricInfo("rms_lsb", "LSB", False, None, "rms error in output scales; 0.289 is ideal rounding"))
