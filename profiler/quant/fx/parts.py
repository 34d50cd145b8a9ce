"""For a model whose own forward cannot be traced: that forward stays Python, and the parts that trace are prepared."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

from profiler.errors import PrepareError
from profiler.quant.fx.boundaries import has_stubs
from profiler.quant.fx.prepare import prepare_qat_fx
from profiler.quant.fx.qconfigs import apply_qconfig_dict
from profiler.quant.fx.trace import trace
from profiler.quant.loading import match_bounds_after_load
from profiler.quant.modules import is_leaf
from profiler.quant.naming import SELF_NAME, join
from profiler.quant.ops.registry import Family, spec_of_module
from profiler.quant.states import attach_journal, named_fake_quants
from profiler.quant.swap import EFFECTS_ATTRIBUTE, LEAVES_ATTRIBUTE, QuantEffect, copy_model

_FLOAT_PART = "quant_float_part"


def prepare_traceable(
    model: nn.Module,
    qconfig_dict: dict[str, Any] | None,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    high_precision_outputs: bool = False,
) -> nn.Module:
    """`prepare_qat_fx` where the model traces; else each of its parts that does.

    A part is a weighted op, or a module whose forward takes one tensor and traces. The forwards above the parts, and
    the functions in them, run in float. The effects say so.

    Args:
        model: float model; it is copied.
        qconfig_dict: as `prepare_qat_fx` takes it.
        example_inputs: positional inputs of one forward.
        high_precision_outputs: as in `prepare_qat_fx`.

    Raises:
        PrepareError: the forward cannot be traced and the model has stubs of its own (use `prepare_qat`), or no part
            of it can be prepared.
    """
    try:
        return prepare_qat_fx(
            model,
            qconfig_dict,
            example_inputs=example_inputs,
            high_precision_outputs=high_precision_outputs,
        )
    except PrepareError as error:
        if has_stubs(model):
            raise
        return _prepare_parts(model, qconfig_dict, high_precision_outputs, error)


def _prepare_parts(
    model: nn.Module, qconfig_dict: dict[str, Any] | None, high_precision_outputs: bool, error: PrepareError
) -> nn.Module:
    model = copy_model(model)
    effects = apply_qconfig_dict(model, qconfig_dict)
    leaves: list[str] = []
    done: dict[int, nn.Module] = {}
    paths = []
    for parent, name, part, path in list(_parts(model)):
        if id(part) not in done:
            done[id(part)] = _prepare_part(part, path, high_precision_outputs)
            effects.extend(getattr(done[id(part)], EFFECTS_ATTRIBUTE))
            leaves.extend(join(path, leaf) for leaf in getattr(done[id(part)], LEAVES_ATTRIBUTE))
        setattr(parent, name, done[id(part)])
        paths.append(path)
    if not paths:
        raise error
    reason = f"{error}; {len(paths)} parts of it were prepared one by one, the functions between them run in float"
    effects.insert(0, QuantEffect(type(model).__name__, "", "torch.float32", reason))
    attach_journal(model)
    setattr(model, EFFECTS_ATTRIBUTE, effects)
    setattr(model, LEAVES_ATTRIBUTE, tuple(leaves))
    model.register_load_state_dict_post_hook(match_bounds_after_load)  # type: ignore[no-untyped-call]
    return model


def drop_unused_parts(model: nn.Module) -> list[str]:
    """Put parts that no batch reached back to float, in place: nobody knows their scales.

    Returns:
        Their paths. They are in the model's effects from then on.
    """
    dropped = []
    parts = {module: module.__dict__.pop(_FLOAT_PART, None) for module in model.modules()}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        part = parts.get(module)
        if part is None or all(fq.is_calibrated for name, fq in named_fake_quants(module) if "weight" not in name):
            continue
        parent, _, name = path.rpartition(".")
        inner = part._modules.get(SELF_NAME)
        setattr(model.get_submodule(parent), name, part if inner is None else inner)
        dropped.append(path)
    effects = [QuantEffect(path, "", "torch.float32", "no batch reached it: it stays in float") for path in dropped]
    setattr(model, EFFECTS_ATTRIBUTE, [*getattr(model, EFFECTS_ATTRIBUTE, ()), *effects])
    return dropped


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[nn.Module, str, nn.Module, str]]:
    """(parent, attribute, part, path) of the largest parts that can be prepared."""
    for name, child in module._modules.items():  # one object under two names is replaced under both
        if child is None:
            continue
        path = join(prefix, name)
        if is_leaf(child):
            if _is_weighted(child) and child.__dict__.get("qconfig") is not None:
                yield module, name, child, path
        elif _takes_one_tensor(child) and any(_is_weighted(m) for m in child.modules()) and _traces(child):
            yield module, name, child, path
        else:
            yield from _parts(child, path)


def _prepare_part(part: nn.Module, path: str, high_precision_outputs: bool) -> nn.Module:
    """One part as a graph with its own automatic stubs; names in it are those of the whole model."""
    if is_leaf(part):
        wrapped = nn.Sequential(OrderedDict([(SELF_NAME, part)]))
        wrapped.train(part.training)
        part = wrapped
    prepared = prepare_qat_fx(part, None, high_precision_outputs=high_precision_outputs)
    prepared.__dict__[_FLOAT_PART] = part
    for module in prepared.modules():
        names = module.__dict__.get("fused_names")
        if names:
            module.__dict__["fused_names"] = tuple(join(path, name) for name in names)
    effects = [
        QuantEffect(_whole_name(path, e.op), e.requested, e.actual, e.reason)
        for e in getattr(prepared, EFFECTS_ATTRIBUTE)
    ]
    setattr(prepared, EFFECTS_ATTRIBUTE, effects)
    return prepared


def _whole_name(path: str, op: str) -> str:
    return path if op == SELF_NAME else join(path, op)


def _is_weighted(module: nn.Module) -> bool:
    spec = spec_of_module(module)
    return spec is not None and spec.family is Family.GEMM


def _takes_one_tensor(module: nn.Module) -> bool:
    parameters = list(inspect.signature(module.forward).parameters.values())
    return len(parameters) == 1 and parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def _traces(module: nn.Module) -> bool:
    try:
        return not trace(module).untraceable
    except PrepareError:
        return False
