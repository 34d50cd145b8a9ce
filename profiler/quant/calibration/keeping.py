"""Runs of a prepared model in other states than its own, which comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from profiler.errors import PrepareError
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.states import FakeQuantState, named_fake_quants
from profiler.quant.switches import GlobalFakeQuantSwitch


@contextmanager
def state_kept(model: nn.Module, caller: str) -> Iterator[None]:
    """Inside the with block the model is in eval, nothing has a gradient, and fake quants follow `use_state`.

    Training flags, states of the fake quants and the global switch come back, also after an error. Fake quants that
    were made meanwhile (eager functions on their first forward) get the state of the others.

    Raises:
        PrepareError: the model has no fake quants.
    """
    fake_quants = {fq: (fq.is_observer_on, fq.is_fake_quant_on, fq.training) for _, fq in named_fake_quants(model)}
    if not fake_quants:
        raise PrepareError(f"{caller}: {type(model).__name__} has no fake quants; give a model that prepare made")
    training = {module: module.training for module in model.modules()}
    was_switched_on = GlobalFakeQuantSwitch.is_on
    GlobalFakeQuantSwitch.is_on = True
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        GlobalFakeQuantSwitch.is_on = was_switched_on
        common = next(iter(fake_quants.values()))
        for module in model.modules():
            module.training = training.get(module, model.training)
        for _, fake_quant in named_fake_quants(model):
            observer_on, fake_quant_on, fake_quant.training = fake_quants.get(fake_quant, common)
            _set(fake_quant, observer_on, fake_quant_on)


def use_state(model: nn.Module, state: FakeQuantState) -> None:
    """As `set_fake_quantize` for a model in eval, without an entry in the journal: the user did not ask for it.

    What `freeze_part` keeps observes nothing; _FLOAT alone switches its rounding off.
    """
    observer_on, fake_quant_on = state.value
    for _, fake_quant in named_fake_quants(model):
        if fake_quant.is_frozen:
            _set(fake_quant, False, state is not FakeQuantState._FLOAT)
        else:
            _set(fake_quant, observer_on, fake_quant_on)
            fake_quant.training = state is FakeQuantState.CALIBRATION


def _set(fake_quant: FakeQuantize, observer_on: bool, fake_quant_on: bool) -> None:
    fake_quant.enable_observer(observer_on)
    fake_quant.enable_fake_quant(fake_quant_on)
