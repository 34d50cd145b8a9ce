"""Before conversion: recorded ops that no calibration batch reached go back to float, and are named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import is_leaf, take_hooks
from profiler.quant.naming import op_name, parse_generated
from profiler.quant.ops.gemm import FakeQuantGemm
from profiler.quant.states import named_fake_quants
from profiler.quant.stubs import FakeQuantStub, QuantStub
from profiler.quant.swap import EFFECTS_ATTRIBUTE, QuantEffect, misses_scale

NO_VALUES = "quant_no_values"  # an empty parameter of converted modules
_REASON = "no calibration batch reached it: it runs in float"


def before_convert(model: nn.Module) -> Callable[[], None]:
    """What a recorded model needs around its conversion.

    Returns:
        What is to be done afterwards.
    """
    leave_unreached_in_float(model)
    with_parameters = [m for m in model.modules() if not is_leaf(m) and next(m.parameters(), None) is not None]
    return partial(_keep_facts, with_parameters)


def _keep_facts(modules: list[nn.Module]) -> None:
    """The model's own code may ask `next(self.parameters())` for a dtype or a device: an empty one answers."""
    for module in reversed(modules):  # children first
        if next(module.parameters(), None) is None:
            buffer = next(module.buffers(), torch.empty(0))
            module.register_parameter(NO_VALUES, nn.Parameter(torch.empty(0, device=buffer.device), False))


def leave_unreached_in_float(model: nn.Module) -> list[str]:
    """Take the quantizers from ops of a recorded model whose scale nobody knows, in place.

    Nothing happens where nothing was observed at all: then calibration was forgotten. Attention, recurrent and other
    composite ops stay, so that convert names them.

    Returns:
        Names of the ops that run in float from now on.
    """
    fake_quants = dict(named_fake_quants(model))
    if not any(fq.is_calibrated for name, fq in fake_quants.items() if not name.endswith("weight_fake_quant")):
        return []
    found: dict[str, None] = {}
    for name, fake_quant in fake_quants.items():
        owner = name.rpartition(".")[0]
        if misses_scale(model, name, fake_quant) and _leave(model, owner):
            found[op_name(owner)] = None
    effects = model.__dict__.get(EFFECTS_ATTRIBUTE)
    if effects is not None:
        effects.extend(QuantEffect(name, "", "torch.float32", _REASON) for name in found)
    return list(found)


def _leave(model: nn.Module, path: str) -> bool:
    parent_path, _, name = path.rpartition(".")
    parent, module = model.get_submodule(parent_path), model.get_submodule(path)
    if isinstance(module, FakeQuantStub) and module.is_automatic:
        plain = QuantStub.automatic()
        take_hooks(plain, module)
        plain.__dict__.update({k: v for k, v in module.__dict__.items() if k.startswith("quant_")})
        plain.train(module.training)
        parent._modules[name] = plain
        return True
    if isinstance(module, FakeQuantGemm):
        module.activation_post_process = None
        return True
    if parse_generated(name) is not None and isinstance(module._modules.get("activation_post_process"), FakeQuantize):
        del parent._modules[name]
        return True
    return False
