"""prepare: one call for all front ends, with setters and the files that tell what became of each op."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from profiler.errors import ConfigError
from profiler.quant.batches import Batch
from profiler.quant.checking.check import check_qat_model
from profiler.quant.eager.prepare import prepare_qat
from profiler.quant.fx.planning import QconfigSource, from_dicts
from profiler.quant.fx.prepare import prepare_qat_fx
from profiler.quant.qconfig import QConfig
from profiler.quant.quantize import qconfig_source
from profiler.quant.record.prepare import prepare_recorded
from profiler.quant.setters.files import write_qconfig_logs
from profiler.quant.setters.setter import QconfigSetter
from profiler.quant.swap import EFFECTS_ATTRIBUTE, copy_model


class PrepareMethod(Enum):
    """How `prepare` finds out what a model does."""

    EAGER = "modules are swapped, functions join on the first forward; the model has stubs of its own"
    SYMBOLIC = "symbolic tracing (torch.fx)"
    JIT = "one run is recorded"
    JIT_STRIP = "one run is recorded; what lies outside the stubs is left alone"


def prepare(
    model: nn.Module,
    example_inputs: Any = None,
    qconfig_setter: Any = None,
    method: PrepareMethod = PrepareMethod.JIT_STRIP,
    example_kw_inputs: dict[str, Any] | None = None,
    *,
    out_dir: str | os.PathLike[str] | None = ".",
) -> nn.Module:
    """Prepare a float model for calibration or QAT.

    The JIT methods run the model once on the example inputs and keep its Python forward; another path than the
    recorded one stays in float, and is named. A model without stubs of its own is quantized from its inputs to its
    outputs.

    Args:
        model: float model; it is copied.
        example_inputs: a tensor, a tuple or list of positional inputs, or a dict of keyword inputs. The JIT methods
            need them.
        qconfig_setter: a QconfigSetter, a QConfig for all ops, or a dict as `prepare_qat_fx` takes it; None: the
            `qconfig` attributes of the model and its children.
        method: the front end.
        example_kw_inputs: inputs by name.
        out_dir: folder for `model_check_result.txt` and `fx_graph.txt`, and with a setter `qconfig_changelogs.txt`,
            `qconfig_dtypes.pt` and `qconfig_dtypes.py`; None writes nothing.

    Returns:
        The prepared model in the QAT state, with `quant_effects`.

    Raises:
        ConfigError: no march is set, no qconfig, an unknown method, or no example inputs where they are needed.
        PrepareError: the front end cannot take the model.
    """
    if not isinstance(method, PrepareMethod):
        names = ", ".join(f"PrepareMethod.{member.name}" for member in PrepareMethod)
        raise ConfigError(f"prepare: method is {method!r}; use one of {names}")
    args, kwargs = _arguments(example_inputs, example_kw_inputs)
    prepared = _PREPARE[method](model, args, kwargs, _source(model, qconfig_setter))
    if out_dir is not None:
        check_qat_model(prepared, args or None, kwargs or None, save_results=True, out_dir=Path(out_dir))
        if isinstance(qconfig_setter, QconfigSetter):
            write_qconfig_logs(qconfig_setter, out_dir, prepared)
    return prepared


def _source(model: nn.Module, qconfig_setter: Any) -> QconfigSource:
    if qconfig_setter is not None:
        return qconfig_source(qconfig_setter)
    if not any(isinstance(m.__dict__.get("qconfig"), QConfig) for m in model.modules()):
        raise ConfigError(
            "prepare: no qconfig; pass qconfig_setter=QconfigSetter(get_qconfig()), a QConfig or a dict, or set "
            "model.qconfig before"
        )
    return from_dicts(None)


def _arguments(example_inputs: Any, by_name: dict[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example_inputs is None:
        return (), dict(by_name or {})
    if isinstance(example_inputs, dict):
        return (), {**example_inputs, **(by_name or {})}
    if isinstance(example_inputs, (tuple, list)) and not isinstance(example_inputs, Tensor):
        return tuple(example_inputs), dict(by_name or {})
    return (example_inputs,), dict(by_name or {})


def _eager(model: nn.Module, args: Any, kwargs: Any, source: QconfigSource) -> nn.Module:
    model = copy_model(model)
    effects = source(model, None)
    prepared = prepare_qat(model, inplace=True)
    getattr(prepared, EFFECTS_ATTRIBUTE).extend(effects)
    return prepared


def _symbolic(model: nn.Module, args: Any, kwargs: Any, source: QconfigSource) -> nn.Module:
    inputs = Batch(args, kwargs).positional(model) if args or kwargs else None
    return prepare_qat_fx(model, example_inputs=inputs, qconfig_setter=source)


def _recorded(model: nn.Module, args: Any, kwargs: Any, source: QconfigSource) -> nn.Module:
    if not args and not kwargs:
        raise ConfigError("prepare: the JIT methods run the model once; pass example_inputs or example_kw_inputs")
    return prepare_recorded(model, [(args, kwargs)], source)


_PREPARE = {
    PrepareMethod.EAGER: _eager,
    PrepareMethod.SYMBOLIC: _symbolic,
    PrepareMethod.JIT: _recorded,
    PrepareMethod.JIT_STRIP: _recorded,
}
