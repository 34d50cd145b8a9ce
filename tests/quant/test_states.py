from __future__ import annotations

import pytest
import torch
from torch import nn

from profiler.errors import ConfigError, NotCalibratedError, PrepareError, StateError
from profiler.quant import FakeQuantState, convert, convert_fx, prepare_qat, prepare_qat_fx, set_fake_quantize
from profiler.quant import default_calib_8bit_fake_quant_qconfig as calib_qconfig
from profiler.quant import default_qat_8bit_fake_quant_qconfig as qat_qconfig
from profiler.quant.journal import StateEvent
from profiler.quant.policy import state_policy
from profiler.quant.states import journal_of, named_fake_quants
from tests.models import Residual, images, make
from tests.quant.stages import FRONT_ENDS, calibrate

PREPARE = {
    "eager": lambda model, q: prepare_qat(_with(model, q)),
    "fx": lambda model, q: prepare_qat_fx(model, {"": q}),
}


def _with(model: nn.Module, qconfig: object) -> nn.Module:
    model.qconfig = qconfig
    return model


def flags(model: nn.Module) -> set[tuple[bool, bool, bool]]:
    return {(fq.is_observer_on, fq.is_fake_quant_on, fq.training) for _, fq in named_fake_quants(model)}


@pytest.fixture(params=PREPARE)
def prepared(request: pytest.FixtureRequest) -> nn.Module:
    return PREPARE[request.param](make(Residual), calib_qconfig)


def test_state_after_prepare_is_qat(prepared: nn.Module) -> None:
    assert {f[:2] for f in flags(prepared)} == {(True, True)}
    assert {f[:2] for f in flags(PREPARE["fx"](make(Residual), qat_qconfig))} == {(True, True)}


def test_set_fake_quantize_calibration_observes_and_trains_only_the_fake_quants(prepared: nn.Module) -> None:
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    assert flags(prepared) == {(True, False, True)}
    quants = {module for _, fq in named_fake_quants(prepared) for module in fq.modules()}
    assert not any(module.training for module in prepared.modules() if module not in quants)


def test_set_fake_quantize_validation_rounds_only(prepared: nn.Module) -> None:
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    assert flags(prepared) == {(False, True, False)}


def test_set_fake_quantize_float_does_neither(prepared: nn.Module) -> None:
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState._FLOAT)
    assert {f[:2] for f in flags(prepared)} == {(False, False)}
    torch.testing.assert_close(prepared(images()[0]), make(Residual)(images()[0]), rtol=1e-4, atol=1e-5)


def test_set_fake_quantize_qat_needs_training(prepared: nn.Module) -> None:
    prepared.eval()
    with pytest.raises(StateError, match=r"QAT trains and needs model.train\(\)"):
        set_fake_quantize(prepared, FakeQuantState.QAT)
    prepared.train()
    set_fake_quantize(prepared, FakeQuantState.QAT)
    assert flags(prepared) == {(True, True, True)}


@pytest.mark.parametrize("state", [FakeQuantState.CALIBRATION, FakeQuantState.VALIDATION])
def test_set_fake_quantize_needs_eval(prepared: nn.Module, state: FakeQuantState) -> None:
    prepared.train()
    before = flags(prepared)
    with pytest.raises(StateError, match=rf"{state.name} needs model.eval\(\) first"):
        set_fake_quantize(prepared, state)
    assert flags(prepared) == before


def test_set_fake_quantize_float_model_is_refused() -> None:
    with pytest.raises(PrepareError, match="no fake quants; call prepare_qat"):
        set_fake_quantize(make(Residual), FakeQuantState.VALIDATION)


def test_first_mistake_training_without_a_state_is_qat_in_the_journal(prepared: nn.Module) -> None:
    prepared.train()
    for x in images():
        prepared(x)
    journal = journal_of(prepared)
    assert journal is not None
    assert journal.events == []
    assert not journal.observed_calibration
    assert max(journal.observed_qat.values()) == 3


def test_second_mistake_eval_without_a_state_is_an_error(prepared: nn.Module) -> None:
    prepared.eval()
    with pytest.raises(NotCalibratedError, match=r"quant\.activation_post_process: fake quant is on, but no scale"):
        prepared(images()[0])


def test_second_mistake_with_policy_warn_leaves_all_scales_at_one(prepared: nn.Module) -> None:
    prepared.eval()
    with state_policy("warn"):
        prepared(images()[0])
    scales = {float(fq.scale) for name, fq in named_fake_quants(prepared) if "weight_fake_quant" not in name}
    assert scales == {1.0}


def test_third_mistake_eval_after_calibration_is_an_error(prepared: nn.Module) -> None:
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    prepared.eval()
    with pytest.raises(StateError, match="observing is on and fake quant is off"):
        prepared(images()[0])


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_convert_uncalibrated_is_refused_and_names_the_activations(front_end: str) -> None:
    model = PREPARE[front_end](make(Residual), calib_qconfig).eval()
    convert_it = convert if front_end == "eager" else convert_fx
    with state_policy("warn"), pytest.raises(NotCalibratedError, match=r"activations have no scale: .*quant"):
        convert_it(model)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_convert_training_model_is_refused(front_end: str) -> None:
    make_stage, convert_it = FRONT_ENDS[front_end]
    with pytest.raises(StateError, match=r"convert needs model.eval\(\) first"):
        convert_it(make_stage(make(Residual), images()).train())


def test_journal_notes_states_with_the_roots_flag_and_batches(prepared: nn.Module) -> None:
    calibrate(prepared, images())
    journal = journal_of(prepared)
    assert journal is not None
    assert journal.events == [StateEvent("CALIBRATION", False), StateEvent("VALIDATION", False)]
    assert set(journal.observed_calibration) >= {
        name for name, fq in named_fake_quants(prepared) if not fq.activation_post_process.is_fixed
    }
    assert set(journal.observed_calibration.values()) == {3}
    assert not journal.has_backward_run
    assert "batches observed: 3 in CALIBRATION, 0 in QAT" in journal.lines()[-1]


def test_journal_backward_is_noted(prepared: nn.Module) -> None:
    prepared.train()
    prepared(images()[0]).sum().backward()
    journal = journal_of(prepared)
    assert journal is not None
    assert journal.has_backward_run


def test_journal_is_not_saved(prepared: nn.Module) -> None:
    assert not any("journal" in key for key in prepared.state_dict())


def test_evaluation_in_calibration_state_is_float_accuracy(prepared: nn.Module) -> None:
    model = calibrate(prepared, images())
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    torch.testing.assert_close(model(images()[0]), make(Residual)(images()[0]), rtol=1e-4, atol=1e-5)


def test_state_by_its_name_is_refused_with_the_members(prepared: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"'calibration'.*QAT, FakeQuantState\.CALIBRATION, .*VALIDATION$"):
        set_fake_quantize(prepared, "calibration")  # type: ignore[arg-type]
