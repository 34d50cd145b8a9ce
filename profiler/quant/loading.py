"""After load_state_dict: observers whose bounds do not give the stored scale start from the stored scale."""

from __future__ import annotations

from typing import Any

from torch import nn

from profiler.quant.states import named_fake_quants


def match_bounds_after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Hook for `load_state_dict`; changes no state and no scale."""
    for _, fake_quant in named_fake_quants(module):
        fake_quant.match_bounds_to_scale()
