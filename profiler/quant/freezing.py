"""freeze_part: a part of a prepared model keeps its weights, statistics and scales while the rest goes on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from profiler.errors import ConfigError, NotCalibratedError, PrepareError, StateError
from profiler.quant.fake_quant import FROZEN_ATTRIBUTE, FakeQuantize
from profiler.quant.journal import StateEvent
from profiler.quant.naming import op_name
from profiler.quant.states import journal_of, named_fake_quants, take_state
from profiler.quant.swap import misses_scale

Prefixes = str | Iterable[str]


@dataclass(frozen=True)
class Frozen:
    """What one frozen module was: names of its own parameters that required a gradient."""

    required_grad: tuple[str, ...]


def freeze_part(model: nn.Module, prefix: Prefixes) -> None:
    """Keep a part of a prepared model as it is: no gradients, eval, VALIDATION.

    The part stays so through `model.train()`, `set_fake_quantize(model, ...)`, `load_state_dict` (which still loads
    values), deep copies and pickling, until `unfreeze_part`; the rest can be calibrated or trained. `_FLOAT`, which
    changes nothing but what is computed, switches its rounding off as everywhere. A module, or a tensor, that the part
    shares with the rest of the model is frozen there too.

    Args:
        model: prepared and calibrated model, eager or fx; changed in place.
        prefix: path of a module or op name, such as `head` or `block.add_0`, or several; what lies below belongs to it.

    Raises:
        ConfigError: a prefix matches nothing, or is the whole model.
        PrepareError: the model has no fake quants.
        NotCalibratedError: an activation of the part has no scale.
    """
    parts = _matching(model, prefix, "freeze_part")
    missing = [n for n, m in parts.items() if isinstance(m, FakeQuantize) and misses_scale(model, n, m)]
    if missing:
        raise NotCalibratedError(
            f"freeze_part: {len(missing)} activations have no scale to keep: {', '.join(missing[:8])}"
            f"{' ...' if len(missing) > 8 else ''}; calibrate first (eval(), then CALIBRATION, then batches), or "
            "load a calibrated state_dict"
        )
    for module in parts.values():
        if FROZEN_ATTRIBUTE not in module.__dict__:
            _freeze(module)
    _note(model, "freeze_part", prefix)


def unfreeze_part(model: nn.Module, prefix: Prefixes) -> None:
    """Take `freeze_part` back, for the whole of a frozen part or for some of it.

    Parameters require a gradient again where they did; training flags follow that of `model`, and the fake quants join
    the state of those that are not frozen (where there are none they stay in VALIDATION).

    Args:
        model: as for `freeze_part`.
        prefix: as for `freeze_part`; what is not frozen stays as it is.

    Raises:
        ConfigError: a prefix matches nothing, or is the whole model.
        PrepareError: the model has no fake quants.
    """
    parts = _matching(model, prefix, "unfreeze_part")
    frozen = [module for module in parts.values() if FROZEN_ATTRIBUTE in module.__dict__]
    free = next((fake_quant for _, fake_quant in named_fake_quants(model) if not fake_quant.is_frozen), None)
    for module in frozen:
        _unfreeze(module)
    for module in frozen:
        module.train(model.training)
    for module in frozen:
        if isinstance(module, FakeQuantize) and free is not None:
            take_state(module, free)
    _note(model, "unfreeze_part", prefix)


def reset_part(model: nn.Module, prefix: Prefixes) -> None:
    """Let a part forget what it observed, so that a new calibration starts afresh instead of being averaged in.

    Its scales are unknown until it observed data again, in CALIBRATION; weights and given scales stay.

    Args:
        model: as for `freeze_part`.
        prefix: as for `freeze_part`.

    Raises:
        ConfigError: a prefix matches nothing, or is the whole model.
        PrepareError: the model has no fake quants.
        StateError: a fake quant of the part is frozen.
    """
    fake_quants = {n: m for n, m in _matching(model, prefix, "reset_part").items() if isinstance(m, FakeQuantize)}
    frozen = [name for name, fake_quant in fake_quants.items() if fake_quant.is_frozen]
    if frozen:
        raise StateError(f"reset_part: {frozen[0]} is frozen; call unfreeze_part first, or reset another part")
    for fake_quant in fake_quants.values():
        fake_quant.forget()
    _note(model, "reset_part", prefix)


def _freeze(module: nn.Module) -> None:
    own = dict(module.named_parameters(recurse=False))
    required_grad = tuple(name for name, parameter in own.items() if parameter.requires_grad)
    for parameter in own.values():
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer would still step by it
    _settle_weight_scale(module)
    if isinstance(module, FakeQuantize):
        module.enable_observer(False)
        module.enable_fake_quant()
    module.training = False
    module.__dict__[FROZEN_ATTRIBUTE] = Frozen(required_grad)
    module.__dict__["train"] = partial(_stay_in_eval, module)  # unlike a closure it is copied and pickled


def _settle_weight_scale(module: Any) -> None:
    """Scales that the next forward would take from the weights: of a norm's gain, and those never computed."""
    if hasattr(module, "follow_gain"):
        module.follow_gain()
    elif hasattr(module, "weight_and_bias") and not module.weight_fake_quant.is_calibrated:
        module.weight_fake_quant.calibrate_on(module.weight_and_bias()[0])


def _unfreeze(module: nn.Module) -> None:
    frozen: Frozen = module.__dict__.pop(FROZEN_ATTRIBUTE)
    del module.__dict__["train"]
    for name in frozen.required_grad:
        module.get_parameter(name).requires_grad_()


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a frozen module; children that joined later, or are no longer frozen, follow the mode."""
    module.training = False
    for child in module.children():
        child.train(mode)
    return module


def _matching(model: nn.Module, prefix: Prefixes, where: str) -> dict[str, nn.Module]:
    """Path and module of all that the prefixes name and of what lies below."""
    if not any(True for _ in named_fake_quants(model)):
        raise PrepareError(
            f"{where}: {type(model).__name__} has no fake quants; call prepare_qat or prepare_qat_fx first"
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted = _as_tuple(prefix)
    if not wanted or "" in wanted:
        raise ConfigError(
            f"{where}: got {prefix!r}, expected the path of a part, such as {next(iter(model._modules))!r}"
        )
    found = {w: [path for path in modules if w in (path, op_name(path))] for w in wanted}
    for name, paths in found.items():
        if not paths:
            near = difflib.get_close_matches(name, _names(modules), n=3, cutoff=0.0)
            raise ConfigError(f"{where}: nothing matches {name!r}; the nearest names are {', '.join(near)}")
    tops = [path for paths in found.values() for path in paths]
    return {n: m for n, m in modules.items() if any(n == top or n.startswith(f"{top}.") for top in tops)}


def _names(modules: dict[str, nn.Module]) -> list[str]:
    """Op and part names, without the fake quants and what lies inside of them."""
    inner = tuple(f"{path}." for path, module in modules.items() if isinstance(module, FakeQuantize))
    named = (n for n, m in modules.items() if n and not isinstance(m, FakeQuantize) and not n.startswith(inner))
    return [op_name(name) for name in named]


def _as_tuple(prefix: Prefixes) -> tuple[str, ...]:
    return (prefix,) if isinstance(prefix, str) else tuple(prefix)


def _note(model: nn.Module, call: str, prefix: Prefixes) -> None:
    journal = journal_of(model)
    if journal is not None:
        journal.events.append(StateEvent(call, model.training, part=", ".join(_as_tuple(prefix))))
