"""Loading scales: after load_state_dict, and from a model that was prepared in another way."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from profiler.errors import PrepareError
from profiler.quant.states import join_state, named_fake_quants
from profiler.quant.swap import copy_model

_LOGGER = logging.getLogger(__name__)


def match_bounds_after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Hook for `load_state_dict`; changes no state and no scale."""
    for name, fake_quant in named_fake_quants(module):
        if fake_quant.journal is None:
            join_state(fake_quant, module, name, module.get_submodule(name.rpartition(".")[0]))
        fake_quant.match_bounds_to_scale()


def load_calib_state_dict(model: nn.Module, state_dict: dict[str, Any]) -> None:
    """Give a prepared model the weights and scales of a calibrated one; all of them or none.

    States stay as they are. Functions that joined on the calibrated model's forwards join here too.

    Args:
        model: prepared model, for calibration or QAT, from the same float model by the same front end; changed in
            place.
        state_dict: `state_dict()` of the calibrated model.

    Raises:
        PrepareError: the model has no fake quants; or names or shapes differ, and nothing was loaded.
    """
    name = type(model).__name__
    if not any(True for _ in named_fake_quants(model)):
        raise PrepareError(f"load_calib_state_dict: {name} has no fake quants; prepare it first")
    trial = copy_model(model)
    problems = []
    try:
        result = trial.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:  # shapes
        problems = [" ".join(str(error).split())]
    else:
        for kind, keys in (("missing", result.missing_keys), ("unexpected", result.unexpected_keys)):
            if keys:
                problems.append(f"{len(keys)} {kind}: {', '.join(keys[:8])}{' ...' if keys[8:] else ''}")
    if problems:
        raise PrepareError(
            f"load_calib_state_dict: the checkpoint does not fit {name}: {'; '.join(problems)}; prepare both from the "
            "same float model, by the same method, on the same example inputs and with the same ops quantized, or "
            "copy what both have with load_observer_params"
        )
    model.load_state_dict(state_dict, strict=True)


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
