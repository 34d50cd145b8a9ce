"""Time that an op would take on a target, estimated: the larger of computing and moving data, and a start-up."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.quant.deploy.layers import LayerFact
from profiler.quant.march import March

NOTE = "Estimated by a cost model (the larger of computing and memory time, plus start-up); no vendor hardware ran."


@dataclass(frozen=True)
class TargetSpeed:
    """Round numbers for a family of targets.

    Attributes:
        int8_ops: int8 operations per second; int16 is a quarter of it, float a sixteenth on the CPU beside it.
        bytes_per_second: to and from DDR.
        startup_us: of each op, in microseconds.
    """

    int8_ops: float
    bytes_per_second: float
    startup_us: float = 2.0


_SLOW, _MEDIUM, _FAST = TargetSpeed(2e12, 4e9), TargetSpeed(5e12, 8e9), TargetSpeed(4e13, 3e10, 1.0)
_SPEEDS = {March.BERNOULLI: _SLOW, March.BERNOULLI2: _SLOW, March.BAYES: _MEDIUM, March.BAYES_E: _MEDIUM}


def speed_of(march: March) -> TargetSpeed:
    """Assumed speed of a march."""
    return _SPEEDS.get(march, _FAST)


def time_us(layer: LayerFact, march: March) -> float:
    """Estimated microseconds of one op call."""
    speed = speed_of(march)
    dtypes = {t.dtype for t in layer.inputs}
    factor = 1.0 if dtypes <= {"qint8", "qint4"} else 4.0 if layer.is_quantized else 16.0
    computing = layer.flops * factor / speed.int8_ops
    moving = layer.num_bytes / speed.bytes_per_second
    return max(computing, moving) * 1e6 + speed.startup_us
