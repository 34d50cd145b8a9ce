"""The stages of a random network by one front end, and what to compare between them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiler.quant import (
    FakeQuantState,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
)
from profiler.quant.fx.planning import from_dicts
from profiler.quant.qconfig import QConfig
from profiler.quant.record.prepare import prepare_recorded
from tests.random_nets.generator import Net, fresh

DEFAULT = default_calib_8bit_fake_quant_qconfig


@dataclass(frozen=True)
class FrontEnd:
    """How a front end prepares and converts; `options` are what the generator needs for it."""

    name: str
    prepare: Callable[[Net, QConfig | None], nn.Module]
    convert: Callable[[nn.Module], nn.Module]
    traceable: bool
    stubs: bool


def _fx(net: Net, qconfig: QConfig | None) -> nn.Module:
    return prepare_qat_fx(net.model, {"": qconfig})


def _eager(net: Net, qconfig: QConfig | None) -> nn.Module:
    prepared = copy.deepcopy(net.model)
    prepared.qconfig = qconfig  # type: ignore[assignment]
    prepared.unused.qconfig = None  # type: ignore[union-attr,assignment]
    return prepare_qat(prepared, inplace=True)


def _record(net: Net, qconfig: QConfig | None) -> nn.Module:
    runs = [((), batch) if isinstance(batch, dict) else (batch, {}) for batch in map(fresh, net.batches)]
    return prepare_recorded(net.model, runs, from_dicts({"": qconfig}))


FX = FrontEnd("fx", _fx, convert_fx, traceable=True, stubs=False)
RECORD = FrontEnd("record", _record, convert, traceable=False, stubs=False)
EAGER = FrontEnd("eager", _eager, convert, traceable=False, stubs=True)


@dataclass
class Stages:
    """Outputs and ways of one network in all its stages, a pair per batch."""

    prepared: nn.Module
    converted: nn.Module
    float_runs: list[Any]
    fake_runs: list[Any]
    integer_runs: list[Any]


def calibrate(net: Net, prepared: nn.Module) -> None:
    """Observe all batches, then VALIDATION."""
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    for batch in net.batches:
        net.run(prepared, batch)
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)


def all_stages(net: Net, front_end: FrontEnd) -> Stages:
    """Prepare, calibrate, validate, convert and run the converted model."""
    float_runs = [net.run(net.model, batch) for batch in net.batches]
    prepared = front_end.prepare(net, DEFAULT)
    calibrate(net, prepared)
    fake_runs = [net.run(prepared, batch) for batch in net.batches]
    converted = front_end.convert(prepared)
    integer_runs = [net.run(converted, batch) for batch in net.batches]
    return Stages(prepared, converted, float_runs, fake_runs, integer_runs)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything about a model that a tool must leave alone: tensors by their bits, flags, hooks, attributes."""
    facts: list[Any] = [(k, v.dtype, v.reshape(-1).view(torch.uint8).tolist()) for k, v in model.state_dict().items()]
    for name, module in model.named_modules():
        hooks = [
            len(h) for key, h in sorted(module.__dict__.items()) if key.endswith("hooks") and hasattr(h, "__len__")
        ]
        facts.append((name, type(module), module.training, hooks, sorted(module.__dict__), list(module._modules)))
        facts.append([(n, p.requires_grad, p.grad) for n, p in module.named_parameters(recurse=False)])
    return facts


def same_bits(one: Any, other: Any) -> bool:
    """Equal in structure, types, dtypes and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[k], other[k]) for k in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return same_bits(vars(one), vars(other)) if type(one).__name__ == "Result" else bool(one == other)
