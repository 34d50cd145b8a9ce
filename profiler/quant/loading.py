"""After load_state_dict: observers start from the stored scale, generated modules join the model's state."""

from __future__ import annotations

from typing import Any

from torch import nn

from profiler.quant.states import join_state, named_fake_quants


def match_bounds_after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Hook for `load_state_dict`; changes no state and no scale."""
    for name, fake_quant in named_fake_quants(module):
        if fake_quant.journal is None:
            join_state(fake_quant, module, name, module.get_submodule(name.rpartition(".")[0]))
        fake_quant.match_bounds_to_scale()
