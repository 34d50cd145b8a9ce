"""Hand-made records: an op call, a chain of them, a state, with just what a rule reads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from profiler.analysis.context import Context
from profiler.records import (
    ChannelStats,
    Comparison,
    LayerRecord,
    ModelRecord,
    PairStats,
    QuantError,
    QuantParams,
    StateRecord,
    TensorStats,
    UnfusedGroup,
)


def qparams(scale: float = 0.1, dtype: str = "qint8", is_calibrated: bool = True) -> QuantParams:
    quant_max = 127 if dtype == "qint8" else 32767
    return QuantParams(dtype, (scale,), -1, -quant_max - 1, quant_max, is_calibrated=is_calibrated)


def pair(sqnr_db: float) -> PairStats:
    mse = 10 ** (-sqnr_db / 10) if math.isfinite(sqnr_db) else 0.0
    return PairStats(100, 0.99, sqnr_db, mse, 0.1, 0.1, 0.0, 1.0, 0.3)


def stats(low: float = -1.0, high: float = 1.0, var: float = 0.25, channels: ChannelStats | None = None) -> TensorStats:
    return TensorStats(100, 0, 0, low, high, (low + high) / 2, var, channels=channels)


def channels(num_live: int = 100, num_coarse: int = 0, spread: float = 8.0) -> ChannelStats:
    return ChannelStats(num_live, num_live, num_coarse, spread, 1.0, 3)


def quant_error(
    codes_per_std: float = 20.0, *, clip: float = 0.0, rounding: float = 1.0, sqnr_db: float = 35.0
) -> QuantError:
    return QuantError(codes_per_std, 0.01 if clip else 0.0, clip, rounding, sqnr_db)


def layer(name: str, inputs: tuple[str, ...] = (), **fields: Any) -> LayerRecord:
    """A healthy compared conv in int8; `fields` overrule."""
    op_name, _, call = name.removesuffix(")").partition("(")
    healthy: dict[str, Any] = {
        "index": 0,
        "name": name,
        "op_name": op_name,
        "call": int(call or 0),
        "reference_type": "torch.nn.modules.conv.Conv2d",
        "test_type": "profiler.quant.ops.conv.Conv2d",
        "status": "compared",
        "kind": "conv",
        "inputs": inputs,
        "accumulated": pair(40.0),
        "injected": pair(40.0),
        "quant_error": quant_error(),
        "qparams": qparams(),
        "reference_output": stats(),
        "test_output": stats(),
    }
    return LayerRecord(**{**healthy, **fields})


def output(source: str, sqnr_db: float = 40.0, name: str = "model output") -> LayerRecord:
    return layer(name, (source,), kind="model_output", is_output=True, accumulated=pair(sqnr_db), qparams=None)


def comparison(*layers: LayerRecord, unfused: tuple[UnfusedGroup, ...] = (), stages: str = "float calib") -> Comparison:
    reference, test = stages.split()
    numbered = tuple(replace(x, index=i) for i, x in enumerate(layers))
    outputs = tuple(x.name for x in layers if x.is_output)
    return Comparison(
        "FvsQ", ModelRecord(reference, "Net"), ModelRecord(test, "Net"), numbered, outputs, unfused=unfused
    )


def context(*layers: LayerRecord, state: StateRecord | None = None, unfused: tuple[UnfusedGroup, ...] = ()) -> Context:
    return Context(comparison(*layers, unfused=unfused), state)


def state(**fields: Any) -> StateRecord:
    """A calib model, calibrated and in VALIDATION; `fields` overrule."""
    healthy: dict[str, Any] = {
        "purpose": "calib",
        "events": (("CALIBRATION", False), ("VALIDATION", False)),
        "num_activations": 4,
        "num_fake_quant_on": 4,
        "observed_calibration": 10,
    }
    return StateRecord(**{**healthy, **fields})
