"""From float to fake-quant and from fake-quant to integer modules: what both front ends share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from profiler.errors import ModelError, NotCalibratedError, PrepareError, StateError
from profiler.quant.affine import QInfo
from profiler.quant.eager.boundaries import convert_boundaries
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.march import require_march
from profiler.quant.modules import QuantOp, is_leaf
from profiler.quant.naming import op_name
from profiler.quant.ops.float_functional import FloatFunctional
from profiler.quant.ops.functional import (
    FunctionOp,
    make_fake_quant_function,
    make_fake_quant_functional,
    tensors_in,
)
from profiler.quant.ops.registry import Family, refusal_of, spec_of_function, spec_of_module
from profiler.quant.preserve import is_preserved, preserve
from profiler.quant.qconfig import QConfig
from profiler.quant.requantize import get_requantization
from profiler.quant.states import JOURNAL_ATTRIBUTE, named_fake_quants
from profiler.quant.switches import CAST, FakeCast, add_cast

EFFECTS_ATTRIBUTE = "quant_effects"
LEAVES_ATTRIBUTE = "quant_leaves"
_KEPT = {EFFECTS_ATTRIBUTE, LEAVES_ATTRIBUTE, JOURNAL_ATTRIBUTE}


@dataclass(frozen=True)
class QuantEffect:
    """What a qconfig did to one op: dtype asked for, dtype it has, and why they differ."""

    op: str
    requested: str
    actual: str
    reason: str = ""


def copy_model(model: nn.Module) -> nn.Module:
    """Deep copy of a model, so that the user's stays as it is.

    Raises:
        ModelError: it is not an nn.Module, or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, got {type(model).__name__}; pass the model itself")
    model = _uncompiled(model)
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _computed_attributes(model)}
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
        for old in model.modules():
            new = memo.get(id(old))
            if new is None:  # inside of a scripted module
                continue
            for name in _dropped(old, new):
                new.__dict__[name] = copy.deepcopy(old.__dict__[name], memo)
        for parent in list(copied.modules()):
            for name, child in list(parent._modules.items()):
                if type(child).__name__ == "OptimizedModule":
                    parent._modules[name] = _uncompiled(child)  # type: ignore[arg-type]
        return copied
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied ({error}); remove the attribute that copy.deepcopy refuses"
        ) from error


def _uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile was given."""
    if type(model).__name__ != "OptimizedModule":
        return model
    inner: nn.Module = model._orig_mod  # type: ignore[assignment]
    return inner


def _computed_attributes(model: nn.Module) -> list[Tensor]:
    """Tensors with a gradient history that modules keep as attributes, in lists or dicts too; copy refuses these."""
    found = []
    for module in model.modules():
        for name, value in module.__dict__.items():
            if not name.startswith("_"):
                found += [t for t in tensors_in(value) if not t.is_leaf]
    return found


def _dropped(old: nn.Module, new: nn.Module) -> set[str]:
    """Attributes that a copy misses: that of an fx.GraphModule has none but fx's own, and no forward hooks."""
    missing = old.__dict__.keys() - new.__dict__.keys()
    if not isinstance(old, fx.GraphModule):
        return _KEPT & missing
    hooks = {name for name, value in old.__dict__.items() if "_hooks" in name and value}
    return missing | {name for name in hooks if not new.__dict__.get(name)}


def copy_in_eval(model: nn.Module) -> nn.Module:
    """Deep copy in eval; a `train()` that the user overrode may give nothing, so its result is not used.

    Raises:
        ModelError: as `copy_model`.
    """
    copied = copy_model(model)
    try:
        copied.eval()
    except NotImplementedError as error:
        raise ModelError(
            f"{type(model).__name__} has no eval ({error}): it comes out of torch.export; pass the nn.Module that was "
            "exported"
        ) from error
    return copied


def fake_quant_form(module: nn.Module, qconfig: QConfig | None) -> nn.Module:
    """Fake-quant form of a float leaf module; the module itself where it has none or keeps the scale."""
    if qconfig is None:
        return module
    form = _fake_quant_form(module, qconfig)
    if getattr(spec_of_module(module), "family", None) is not Family.STUB:
        add_cast(form, qconfig)
    return form


def _fake_quant_form(module: nn.Module, qconfig: QConfig) -> nn.Module:
    if isinstance(module, FloatFunctional):
        return make_fake_quant_functional(module, qconfig)
    if isinstance(module, FunctionOp):
        spec = spec_of_function(module.function)
        if spec is None or spec.family not in (Family.FUNCTION, Family.COMPOSITE):
            return module
        return make_fake_quant_function(module, module.function, module.bound, module.label, qconfig)
    spec = spec_of_module(module)
    if spec is None or spec.family in (Family.SCALE_KEEPING, Family.INDEX):
        return module
    if spec.fake_quant is not None:
        return spec.fake_quant(module, qconfig)
    bound = spec.bind(module) if spec.bind is not None else {}
    return make_fake_quant_function(module, spec.functions[0], bound, type(module).__name__, qconfig)


def actual_dtype(module: nn.Module) -> str:
    """Dtype of a prepared module's output; "input's" where it keeps the scale."""
    fake_quant = getattr(module, "activation_post_process", None)
    if isinstance(fake_quant, FakeQuantize):
        return fake_quant.dtype
    cast = module._modules.get(CAST)
    if isinstance(cast, FakeCast):
        return str(cast.dtype)
    spec = spec_of_function(module.function) if isinstance(module, FunctionOp) else spec_of_module(module)
    return "input's" if spec is not None and spec.family is Family.SCALE_KEEPING else "torch.float32"


def effect_of(name: str, module: nn.Module, qconfig: QConfig | None) -> QuantEffect:
    """What the qconfig did to a module that was prepared with it."""
    if qconfig is None:
        return QuantEffect(op_name(name), "None", "torch.float32", "qconfig is None")
    actual, requested = actual_dtype(module), qconfig.fallback_from or qconfig.activation_dtype
    reason = qconfig.fallback_reason
    is_stub = getattr(spec_of_module(module), "family", None) is Family.STUB
    if actual == "torch.float32" != requested and not is_stub and not hasattr(module, "to_integer"):
        reason = refusal_of(module) or f"no quantized form of {type(module).__name__}"
        reason += ": runs in float between automatic boundaries"
    return QuantEffect(op_name(name), requested, actual, reason)


def leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[nn.Module, str, nn.Module, str]]:
    """(parent, attribute, module, path) of every op module, each path once; shared modules come once per path."""
    for attribute, child in list(model._modules.items()):
        if child is None or isinstance(child, FakeQuantize):
            continue
        path = f"{prefix}.{attribute}" if prefix else attribute
        if is_leaf(child) or hasattr(child, "to_integer"):
            yield model, attribute, child, path
        else:
            yield from leaves(child, path)


def is_converted(model: nn.Module) -> bool:
    """Whether a model holds integer forms of ops: it comes out of convert."""
    return any(isinstance(m, QuantOp) and hasattr(m, "out_dtype") for m in model.modules())


def is_prepared(model: nn.Module) -> bool:
    """Whether a model is in fake-quant form; a converted one may hold single ops in that form all the same."""
    return not is_converted(model) and any(True for _ in named_fake_quants(model))


def require_float_model(model: nn.Module) -> None:
    """Refuse to prepare what is no float model any more.

    Raises:
        PrepareError: the model is prepared or converted, or in half precision.
    """
    if any(True for _ in named_fake_quants(model)) or is_converted(model):
        stage = "converted" if is_converted(model) else "prepared"
        raise PrepareError(f"{type(model).__name__} is {stage} already; prepare the float model that it was made from")
    half = [(n, p.dtype) for n, p in model.named_parameters() if p.dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise PrepareError(f"{half[0][0]} is {half[0][1]}; quantization starts from float32: call model.float() first")


def misses_scale(model: nn.Module, name: str, fake_quant: FakeQuantize) -> bool:
    """Whether convert needs a scale that no data gave: weights make theirs, functions outside the stubs need none.

    Where all scales come from a checkpoint nobody knows which functions lie outside; one that lies inside raises when
    the
    converted model runs.
    """
    owner, _, role = name.rpartition(".")
    if fake_quant.is_calibrated or role == "weight_fake_quant":
        return False
    is_known_to_be_outside = getattr(model.get_submodule(owner), "ran_in_float", None)
    if is_known_to_be_outside is None:
        return True
    has_run_here = fake_quant.journal is None or fake_quant.journal.has_observed
    return has_run_here and not is_known_to_be_outside


def keep_requantization(converted: nn.Module) -> None:
    """Store what `set_requantization` chose in the integer forms that were just made."""
    for module in converted.modules():
        info = getattr(module, "out_info", None)
        if isinstance(info, QInfo):
            module.out_info = replace(info, requantization=get_requantization())  # type: ignore[assignment]


def convert_modules(model: nn.Module, remove_qconfig: bool) -> None:
    """Replace every fake-quant module by its integer form, in place.

    Raises:
        PrepareError: the model is not prepared, or converted already.
        StateError: the model is in training mode.
        NotCalibratedError: activations without a scale; the message names them.
    """
    require_march()
    if not is_prepared(model):
        stage = "converted already" if is_converted(model) else "a float model"
        raise PrepareError(f"{type(model).__name__} is {stage}; convert takes a prepared and calibrated model")
    if model.training:
        raise StateError("convert needs model.eval() first; the model is in training mode")
    missing = [name for name, fake_quant in named_fake_quants(model) if misses_scale(model, name, fake_quant)]
    if missing:
        raise NotCalibratedError(
            f"{len(missing)} activations have no scale: {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}; "
            "calibrate with data that reaches them (eval(), then CALIBRATION, then batches), or set qconfig = "
            "None there"
        )
    done: dict[int, Any] = {}
    for parent, attribute, module, _ in list(leaves(model)):
        if not hasattr(module, "to_integer"):
            continue
        if id(module) not in done:
            to_integer: Any = module.to_integer
            done[id(module)] = (preserve(module) if is_preserved(module) else to_integer(), module)
        parent._modules[attribute] = done[id(module)][0]
        keep_requantization(done[id(module)][0])
    convert_boundaries(model)
    if remove_qconfig:
        for module in model.modules():
            module.__dict__.pop("qconfig", None)
