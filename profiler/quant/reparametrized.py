"""Weights that are computed from other parameters (weight norm, spectral norm, pruning) become plain parameters."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.prune import remove as remove_pruning
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def use_plain_weights(model: nn.Module) -> list[str]:
    """Replace reparametrized tensors by parameters with their present values, in place.

    Returns:
        Paths of the tensors; their outputs stay what they were.
    """
    found = []
    for path, module in list(model.named_modules()):
        names = _fold_hooks(module) + _fold_parametrizations(module)
        found += [f"{path}.{name}" if path else name for name in names]
    return found


def _fold_parametrizations(module: nn.Module) -> list[str]:
    """By hand: torch's own removal takes the property from the class, which copies of the module share."""
    if not parametrize.is_parametrized(module):
        return []
    parametrizations: Any = module.parametrizations
    parametrizations.eval()  # spectral norm goes on in training mode
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    are_trained = {name: any(True for _ in parametrizations[name].parameters()) for name in values}
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    for name, value in values.items():
        if are_trained[name]:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)
    return list(values)


def _fold_hooks(module: nn.Module) -> list[str]:
    names: list[str] = []
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            names.append(hook.name)
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            names.append(hook.name)
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, BasePruningMethod):
            names.append(hook._tensor_name)
            remove_pruning(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    return names
