"""What may be deployed: a converted model in eval, with scales that are known."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError, NotCalibratedError, StateError
from profiler.quant.march import March, get_march, march_or_default
from profiler.quant.states import named_fake_quants

_LOG = logging.getLogger(__name__)


def integer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Path and module of every op that writes integer codes."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "out_info")}


def is_scripted(model: nn.Module) -> bool:
    """Whether it is a traced or scripted module, whose ops cannot be looked at one by one."""
    return isinstance(model, torch.jit.ScriptModule)


def require_converted(model: nn.Module, where: str) -> None:
    """Refuse what is not a converted model in eval.

    Raises:
        ModelError: not a module, a float model, or a prepared model that was not converted.
        StateError: the model is in training mode, or a fake quant that stayed (set_preserve_qat_mode) observes.
        NotCalibratedError: a scale is missing.
    """
    require_eval_module(model, where)
    if is_scripted(model):
        return
    fake_quants = list(named_fake_quants(model))
    if not integer_modules(model):
        if fake_quants:
            raise ModelError(f"{where}: the model is prepared but not converted; call convert(model.eval()) first")
        raise ModelError(
            f"{where}: this is a float model; prepare and calibrate it, convert it, and pass the converted model"
        )
    require_quiet(model, where)
    for name, module in integer_modules(model).items():
        scale = getattr(module, "out_scale", None)
        if isinstance(scale, Tensor) and not bool(torch.isfinite(scale).all() and (scale > 0).all()):
            raise NotCalibratedError(f"{where}: {name} has scale {scale.tolist()}; calibrate the model again")


def require_quantized(model: nn.Module, where: str) -> None:
    """Refuse float models, models in training mode and live observers; prepared models may pass.

    Raises:
        ModelError: not a module, or a float model.
        StateError: training mode or live observers.
        NotCalibratedError: a fake quant without a scale.
    """
    require_eval_module(model, where)
    if is_scripted(model):
        return
    if not integer_modules(model) and not any(True for _ in named_fake_quants(model)):
        raise ModelError(f"{where}: this is a float model; use torch.onnx.export for it, or prepare it first")
    require_quiet(model, where)


def require_eval_module(model: nn.Module, where: str) -> None:
    """Refuse what is no module, or is in training mode.

    Raises:
        ModelError: not an nn.Module.
        StateError: `training` is on.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"{where}: expected an nn.Module, got {type(model).__name__}")
    if model.training:
        raise StateError(f"{where}: the model is in training mode; call model.eval() first")


def require_quiet(model: nn.Module, where: str) -> None:
    """Refuse live observers and fake quants without a scale.

    Raises:
        StateError: an observer is on and would learn.
        NotCalibratedError: a fake quant that is on has no scale.
    """
    fake_quants = dict(named_fake_quants(model))
    live = [name for name, f in fake_quants.items() if bool(f.observer_enabled) and f.training]
    if live:
        raise StateError(
            f"{where}: observers are on ({', '.join(live[:3])}{' ...' if len(live) > 3 else ''}); call model.eval() "
            "and set_fake_quantize(model, FakeQuantState.VALIDATION) first"
        )
    activations = [n for n, f in fake_quants.items() if not f.is_calibrated and not n.endswith("weight_fake_quant")]
    if activations and len(activations) == sum(not n.endswith("weight_fake_quant") for n in fake_quants):
        raise NotCalibratedError(f"{where}: no scale is known ({activations[0]} ...); calibrate the model first")


def parse_opt(opt: int | str) -> int:
    """Level 0 to 3 of 0..3 or "O0".."O3".

    Raises:
        ConfigError: something else.
    """
    text = str(opt).upper().removeprefix("O")
    if text not in ("0", "1", "2", "3") or isinstance(opt, bool):
        raise ConfigError(f"opt={opt!r}; expected 0, 1, 2, 3 or 'O0' ... 'O3'")
    return int(text)


def target_march(march: March | str | None) -> March:
    """The march given, else the one that is set, else BAYES, which `quantize` takes then, too.

    Raises:
        ConfigError: the name is unknown.
    """
    if march is None and get_march() is None:
        _LOG.info("no march is set: bayes is assumed")
    return march_or_default(march)
