"""The four fake-quant states of a prepared model."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

from torch import fx, nn

from profiler.errors import ConfigError, PrepareError, StateError
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.journal import Journal, StateEvent
from profiler.quant.learned_fake_quant import _LearnableFakeQuantize

JOURNAL_ATTRIBUTE = "quant_journal"


class FakeQuantState(Enum):
    """(observer on, fake quant on) of every fake quant of a model."""

    QAT = (True, True)
    CALIBRATION = (True, False)
    VALIDATION = (False, True)
    _FLOAT = (False, False)


def set_fake_quantize(model: nn.Module, state: FakeQuantState) -> None:
    """Put all fake quants of a prepared model into one state.

    CALIBRATION also puts the fake-quant modules (only them) into training mode, so that they observe. What
    `freeze_part` keeps stays in VALIDATION; only `_FLOAT` switches its rounding off too.

    Raises:
        ConfigError: `state` is not a FakeQuantState.
        PrepareError: the model has no fake quants.
        StateError: QAT on a model in eval, or CALIBRATION or VALIDATION on a model in training mode; or all of it is
            frozen, so that nothing could be calibrated or trained.
    """
    if not isinstance(state, FakeQuantState):
        members = ", ".join(f"FakeQuantState.{member.name}" for member in FakeQuantState if member.name[0] != "_")
        raise ConfigError(f"set_fake_quantize: state is {state!r}; use one of {members}")
    fake_quants = dict(named_fake_quants(model))
    if not fake_quants:
        raise PrepareError("the model has no fake quants; call prepare_qat or prepare_qat_fx first")
    _require_mode(model, state)
    observer_on, fake_quant_on = state.value
    free = [fake_quant for fake_quant in fake_quants.values() if not fake_quant.is_frozen]
    if observer_on and not free:
        raise StateError(f"FakeQuantState.{state.name}: all fake quants are frozen; call unfreeze_part first")
    for fake_quant in fake_quants.values():
        if fake_quant.is_frozen:
            fake_quant.enable_fake_quant(state is not FakeQuantState._FLOAT)
    for fake_quant in free:
        fake_quant.enable_observer(observer_on)
        fake_quant.enable_fake_quant(fake_quant_on)
        if state is FakeQuantState.CALIBRATION:
            fake_quant.train()
    journal = journal_of(model)
    if journal is not None:
        journal.events.append(StateEvent(state.name, model.training))


def named_fake_quants(model: nn.Module) -> Iterator[tuple[str, FakeQuantize]]:
    """Path and module of every fake quant, activations and weights."""
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantize):
            yield name, module


def journal_of(model: nn.Module) -> Journal | None:
    """The journal of a prepared model, or None."""
    journal = getattr(model, JOURNAL_ATTRIBUTE, None)
    if journal is None and isinstance(model, fx.GraphModule):  # a deep copy of one keeps fx's own attributes only
        journal = next((fq.journal for _, fq in named_fake_quants(model)), None)
    return journal if isinstance(journal, Journal) else None


def place_fake_quants(model: nn.Module) -> None:
    """Move the fake quants of ops without tensors of their own (stubs, functions) to the model's device."""
    for name, fake_quant in named_fake_quants(model):
        owner: Any = model.get_submodule(name.rpartition(".")[0])
        _place(fake_quant, model, owner)
        is_weight = name.endswith("weight_fake_quant") and not fake_quant.is_calibrated
        if is_weight and isinstance(fake_quant, _LearnableFakeQuantize) and hasattr(owner, "weight_and_bias"):
            fake_quant.calibrate_on(owner.weight_and_bias()[0])  # an optimizer made now gets the parameter that stays


def attach_journal(model: nn.Module) -> None:
    """Name every fake quant and give all of them one new journal."""
    journal = Journal()
    setattr(model, JOURNAL_ATTRIBUTE, journal)
    for name, fake_quant in named_fake_quants(model):
        fake_quant.name, fake_quant.journal = name, journal


def join_state(fake_quant: FakeQuantize, root: nn.Module, name: str, owner: nn.Module) -> None:
    """A late fake quant of the op `owner` takes part in the state, journal and device of the model it joins."""
    _place(fake_quant, root, owner)
    others = [fq for _, fq in named_fake_quants(root) if fq.journal is not None and fq is not fake_quant]
    sibling = next((fq for fq in others if not fq.is_frozen), next(iter(others), None))
    fake_quant.name, fake_quant.journal = name, journal_of(root)
    if sibling is not None:
        fake_quant.journal = sibling.journal
        take_state(fake_quant, sibling)


def take_state(fake_quant: FakeQuantize, other: FakeQuantize) -> None:
    """Put one fake quant into the state of another one of its model."""
    fake_quant.enable_observer(other.is_observer_on)
    fake_quant.enable_fake_quant(other.is_fake_quant_on)
    fake_quant.train(other.training)


def _place(fake_quant: FakeQuantize, root: nn.Module, owner: nn.Module) -> None:
    tensor = next(iter(root.parameters()), None)
    if tensor is not None and next(iter(owner.parameters()), None) is None and not owner._buffers:
        fake_quant.to(tensor.device)


def _require_mode(model: nn.Module, state: FakeQuantState) -> None:
    if state is FakeQuantState.QAT and not model.training:
        raise StateError("FakeQuantState.QAT trains and needs model.train() first; the model is in eval")
    if state in (FakeQuantState.CALIBRATION, FakeQuantState.VALIDATION) and model.training:
        raise StateError(
            f"FakeQuantState.{state.name} needs model.eval() first; the model is in training mode, where BatchNorm and "
            "dropout would change the results"
        )
