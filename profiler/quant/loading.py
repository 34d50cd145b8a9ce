"""Loading scales: after load_state_dict, and from a model that was prepared in another way."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from profiler.errors import PrepareError
from profiler.quant.states import join_state, named_fake_quants

_LOGGER = logging.getLogger(__name__)


def match_bounds_after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Hook for `load_state_dict`; changes no state and no scale."""
    for name, fake_quant in named_fake_quants(module):
        if fake_quant.journal is None:
            join_state(fake_quant, module, name, module.get_submodule(name.rpartition(".")[0]))
        fake_quant.match_bounds_to_scale()


def load_observer_params(from_model: nn.Module, to_model: nn.Module, verbose: bool = False) -> None:
    """Copy scales and observer state, by name, between models that were prepared in different ways.

    Weights and states stay as they are. Names that only one model has are logged as missing (not in `from_model`) and
    unexpected (not in `to_model`).

    Args:
        from_model: calibrated model, eager or fx.
        to_model: prepared model; changed in place.
        verbose: log each copied name too.

    Raises:
        PrepareError: a model has no fake quants.
    """
    given, wanted = dict(named_fake_quants(from_model)), dict(named_fake_quants(to_model))
    for model, found in ((from_model, given), (to_model, wanted)):
        if not found:
            raise PrepareError(f"load_observer_params: {type(model).__name__} has no fake quants; prepare it first")
    for name in sorted(given.keys() & wanted.keys()):
        wanted[name].load_state_dict(given[name].state_dict())
        wanted[name].match_bounds_to_scale()
        if verbose:
            _LOGGER.info("copied %s", name)
    for kind, names in (("missing", wanted.keys() - given.keys()), ("unexpected", given.keys() - wanted.keys())):
        if names:
            _LOGGER.warning("load_observer_params: %d %s: %s", len(names), kind, ", ".join(sorted(names)))
