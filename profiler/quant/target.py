"""Fits qconfigs to the target: dtypes that it lacks fall back, its scales are powers of two where it needs them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from profiler.quant.affine import qint8, qint16
from profiler.quant.consistency import ConsistencyStrategy
from profiler.quant.march import March, require_march
from profiler.quant.qconfig import QConfig, with_dtype


def fit_qconfigs_to_target(model: nn.Module) -> None:
    """Replace the qconfig of every module by what the march and the consistency level make of it, in place.

    Raises:
        ConfigError: no march is set.
    """
    march, level = require_march(), ConsistencyStrategy.get_consistency_level()
    fitted: dict[int, tuple[QConfig, QConfig]] = {}
    for module in model.modules():
        qconfig = module.__dict__.get("qconfig")
        if isinstance(qconfig, QConfig):
            if id(qconfig) not in fitted:
                fitted[id(qconfig)] = (fit_qconfig(qconfig, march, level), qconfig)
            module.__dict__["qconfig"] = fitted[id(qconfig)][0]


def fit_qconfig(qconfig: QConfig, march: March, level: int) -> QConfig:
    """One qconfig for a march and a consistency level; int16 activations fall back to int8 where there are none."""
    if qconfig.activation_dtype == qint16 and not (march.has_int16_activations or qconfig.is_final):
        qconfig = narrowed(qconfig, f"QC8: {march.value} has no int16 activations")
    for_weights = march is March.BERNOULLI or level >= 2
    return replace(
        qconfig,
        activation=_power_of_two(qconfig.activation) if needs_powers_of_two(march, level) else qconfig.activation,
        weight=_power_of_two(qconfig.weight) if for_weights else qconfig.weight,
        input=_power_of_two(qconfig.input) if needs_powers_of_two(march, level) else qconfig.input,
    )


def needs_powers_of_two(march: March | None, level: int) -> bool:
    """Whether scales of activations are powers of two on a march at a consistency level."""
    return march is March.BERNOULLI or level >= 1


def narrowed(qconfig: QConfig, reason: str) -> QConfig:
    """The same qconfig with int8 activations; it keeps what was asked for and why it is not so."""
    requested = qconfig.fallback_from or qconfig.activation_dtype
    return replace(
        qconfig, activation=with_dtype(qconfig.activation, qint8), fallback_from=requested, fallback_reason=reason
    )


def _power_of_two(factory: Any) -> Any:
    return factory.with_args(power_of_two=True) if hasattr(factory, "with_args") else factory
