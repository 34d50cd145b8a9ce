"""quantize: the whole way of a float model to integers in one call, by the front end that fits it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from profiler.errors import ConfigError, ModelError, PrepareError, ProfilerError
from profiler.quant.batches import Batch, require_same_flags, take_batches
from profiler.quant.calibrating import Tell, calibrate, run_forward
from profiler.quant.eager.convert import convert
from profiler.quant.fx.planning import QconfigSource, from_dicts
from profiler.quant.fx.prepare import prepare_qat_fx
from profiler.quant.fx.trace import trace
from profiler.quant.march import March, march_or_default, march_set_to
from profiler.quant.modules import has_hooks, is_leaf
from profiler.quant.norm_inputs import default_qconfigs
from profiler.quant.ops.functional import tensors_in
from profiler.quant.ops.registry import spec_of_module
from profiler.quant.qconfig import QConfig
from profiler.quant.record.prepare import prepare_recorded
from profiler.quant.reparametrized import use_plain_weights
from profiler.quant.states import named_fake_quants
from profiler.quant.swap import EFFECTS_ATTRIBUTE, QuantEffect, copy_in_eval, copy_model
from profiler.quant.transformer import use_plain_forwards
from profiler.quant.usable import require_usable_weights

FRONT_ENDS = ("auto", "fx", "record")
# A trace that computes the same as the model differs from it by rounding only.
_TRACE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Stages:
    """The stages of one model on its way to integers.

    Attributes:
        float: the float model in eval; a copy.
        calib: the calibrated fake-quant model in VALIDATION.
        quantized: the integer model.
        effects: what became of the model and of each op: the first names the front end and why it was taken, the
            others the dtype that was asked for, the one that the op got, and the reason where they differ.
        frontend: "fx" or "record".
        notes: what was done to the data and the model on the way.
    """

    float: nn.Module
    calib: nn.Module
    quantized: nn.Module
    effects: tuple[QuantEffect, ...]
    frontend: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calibrated:
    """What `calibrated_stages` made; see `Stages`."""

    float: nn.Module
    calib: nn.Module
    frontend: str
    notes: tuple[str, ...] = ()


def quantize(
    model: nn.Module,
    batches: Any,
    *,
    march: March | str | None = None,
    qconfig: Any = None,
    frontend: str = "auto",
    num_batches: int = 32,
    batch_process_func: Callable[[Any], Any] | None = None,
) -> Stages:
    """Calibrate a float model on real batches and convert it to integers.

    Any model will do: symbolic tracing is used where it sees the whole model, else its runs on the batches are
    recorded, so that control flow, item assignment, dicts and shared modules are quantized as they are. What has no
    quantized form stays in float and is named in the effects.

    Args:
        model: trained float model; it is copied.
        batches: one batch (tensor, tuple of arguments, dict of keyword arguments) or an iterable of batches.
        march: target; the one that is set, else BAYES.
        qconfig: a QConfig for all ops, a dict as `prepare_qat_fx` takes it, or a `QconfigSetter`. By default int8 with
            the least squared error, int16 for what norms and softmax read, and outputs in high precision.
        frontend: "auto", "fx" (symbolic tracing) or "record" (recorded runs).
        num_batches: how many batches are used, at most.
        batch_process_func: turns what `batches` yields into what the model takes.

    Returns:
        The stages; the integer model computes on int8 tensors and can be exported by `compile_model`.

    Raises:
        ModelError: not a float32 module, NaN in its weights, or its forward raises on a later batch.
        DataError: no data, or data that does not fit.
        ConfigError: an argument cannot be used.
        PrepareError: no op has a quantized form, or the front end that was asked for cannot take the model.
    """
    if frontend not in FRONT_ENDS:
        raise ConfigError(f"quantize: frontend is {frontend!r}; use one of {', '.join(map(repr, FRONT_ENDS))}")
    chosen = march_or_default(march)
    if not isinstance(model, nn.Module):
        raise ModelError(f"quantize: expected an nn.Module, got {type(model).__name__}; pass the model itself")
    require_usable_weights(model)
    taken = take_batches(batches, model, num_batches, batch_process_func)
    with march_set_to(chosen):
        stages = calibrated_stages(model, taken.items, qconfig, frontend=frontend)
        quantized = convert(stages.calib)
    effects = tuple(getattr(stages.calib, EFFECTS_ATTRIBUTE))
    notes = (*taken.notes, *stages.notes)
    return Stages(stages.float, stages.calib, quantized, effects, stages.frontend, notes)


def calibrated_stages(
    model: nn.Module, batches: Sequence[Batch], qconfig: Any, *, frontend: str = "auto", tell: Tell | None = None
) -> Calibrated:
    """Float model in eval and its calibrated form.

    Args:
        model: float model; it is copied.
        batches: arguments of its forwards.
        qconfig: as `quantize` takes it.
        frontend: one of FRONT_ENDS.
        tell: told `(step, done, total)`.

    Raises:
        DataError, ModelError, PrepareError: as `quantize`.
    """
    tell = tell or (lambda step, done, total: None)
    reference = as_network(copy_in_eval(model))
    run_forward(reference, batches[0], "float", 0)
    tell("prepare", 0, 1)
    calib, used = _prepare(reference, batches, qconfig, frontend)
    calib.eval()
    if not any(True for _ in named_fake_quants(calib)):
        raise PrepareError(_nothing_quantized(model, getattr(calib, EFFECTS_ATTRIBUTE)))
    tell("prepare", 1, 1)
    calibrate(calib, reference, batches, tell)
    notes = (f"{type(model).__name__} was in training mode: a copy in eval was used",) if model.training else ()
    return Calibrated(reference, calib, used, notes)


def _nothing_quantized(model: nn.Module, effects: Sequence[QuantEffect]) -> str:
    reasons = [f"{effect.op}: {effect.reason}" for effect in effects[1:] if effect.reason]
    text = "; ".join(reasons[:5]) if reasons else "no op lies between its inputs and its outputs"
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return (
        f"{type(model).__name__}: no op of this model has a quantized form here, so there is nothing to quantize "
        f"({text}{more}); give the ops a qconfig, or modules that docs/operators.md lists"
    )


def as_network(model: nn.Module) -> nn.Module:
    """A model that is one op, such as nn.Linear, as a network of that op."""
    return nn.Sequential(OrderedDict(model=model)) if spec_of_module(model) is not None else model


def qconfig_source(qconfig: Any) -> QconfigSource:
    """What sets the qconfigs of a model's ops: a QConfig for all, a dict, or a setter.

    Raises:
        ConfigError: it is none of these.
    """
    if qconfig is None:
        return default_qconfigs
    if isinstance(qconfig, QConfig):
        return from_dicts({"": qconfig})
    if isinstance(qconfig, dict):
        return from_dicts(qconfig)
    if callable(qconfig) and not isinstance(qconfig, type):
        setter: QconfigSource = qconfig
        return setter
    raise ConfigError(
        f"qconfig is {type(qconfig).__name__}; expected a QConfig, a dict as prepare_qat_fx takes it, or a "
        "QconfigSetter"
    )


def _prepare(reference: nn.Module, batches: Sequence[Batch], qconfig: Any, frontend: str) -> tuple[nn.Module, str]:
    source, is_default = qconfig_source(qconfig), qconfig is None
    reason = "" if frontend == "auto" else "as asked for"
    if frontend == "auto":
        reason = why_not_traced(reference, batches)
        frontend = "record" if reason else "fx"
    if frontend == "fx":
        require_same_flags(batches)
        inputs = batches[0].positional(reference)
        calib: nn.Module = prepare_qat_fx(
            reference, example_inputs=inputs, high_precision_outputs=is_default, qconfig_setter=source
        )
    else:
        calib = _recorded(reference, batches, source, high_precision_outputs=is_default)
    reason = reason or "symbolic tracing sees the whole model"
    effects = getattr(calib, EFFECTS_ATTRIBUTE)
    effects.insert(0, QuantEffect(type(reference).__name__, "front end", frontend, reason))
    return calib, frontend


def _recorded(
    reference: nn.Module, batches: Sequence[Batch], source: QconfigSource, *, high_precision_outputs: bool
) -> nn.Module:
    runs = [(copied.args, copied.kwargs) for copied in (batch.clone() for batch in batches)]
    try:
        return prepare_recorded(reference, runs, source, high_precision_outputs=high_precision_outputs)
    except PrepareError:
        for index, batch in enumerate(batches):  # if the model itself fails, say on which batch
            run_forward(reference, batch, "float", index)
        raise


def why_not_traced(model: nn.Module, batches: Sequence[Batch]) -> str:
    """Why the recorded front end should take a model; "" where a symbolic trace sees all of it and computes the same.

    Args:
        model: float model in eval.
        batches: the first and the last are tried.
    """
    try:
        require_same_flags(batches)
        scratch = copy_model(model)
        use_plain_weights(scratch)
        hooked = next((n for n, m in scratch.named_modules() if has_hooks(m) and (is_leaf(m) or m is scratch)), None)
        if hooked is not None:
            return f"{hooked or type(model).__name__} has forward hooks, which a trace does not see"
        use_plain_forwards(scratch)
        traced = trace(scratch, example_inputs=batches[0].positional(scratch), is_quiet=True)
        if traced.untraceable:
            name, why = next(iter(traced.untraceable.items()))
            return f"{name} {why}"
        network = fx.GraphModule(scratch, traced.graph)
        for index in {0, len(batches) - 1}:
            difference = _difference(model, network, batches[index])
            if difference:
                return f"its symbolic trace computes something else on batch {index}: {difference}"
    except ProfilerError as error:
        return str(error).partition("; record its runs")[0]
    except Exception as error:  # whatever generated code raises
        return f"its symbolic trace does not run: {type(error).__name__}: {error}"
    return ""


def _difference(model: nn.Module, network: nn.Module, batch: Batch) -> str:
    with torch.no_grad(), torch.random.fork_rng():
        expected = tensors_in(batch.run(model))
        given = batch.clone().positional(model)
        found = tensors_in(network.forward(*given))
    if len(expected) != len(found):
        return f"{len(found)} tensors instead of {len(expected)}"
    errors = [_relative_error(a, b) for a, b in zip(expected, found, strict=True)]
    worst = max(errors, default=0.0)
    return "" if worst <= _TRACE_TOLERANCE else f"relative error {worst:.3g}"


def _relative_error(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return math.inf
    if expected.numel() == 0 or torch.equal(expected, found):
        return 0.0
    if not expected.is_floating_point():
        return math.inf
    peak = float(expected.abs().max())
    error = float((expected.double() - found.double()).abs().max())
    return error / peak if peak > 0 else error
