"""ST1 - ST5: the mistakes of the calibration workflow, made for real; each is found, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from profiler.analysis.findings.state import (
    called_but_uncalibrated,
    eval_after_calibration_state,
    evaluated_without_fake_quant,
    never_calibrated,
    qat_instead_of_calibration,
)
from profiler.quant import FakeQuantState, default_qat_8bit_fake_quant_qconfig, prepare_qat, set_fake_quantize
from profiler.quant.policy import state_policy
from profiler.records import Finding
from tests.analysis.made import context, layer, output, state
from tests.analysis.toys import PlainCnn, built, calibrated, configured, findings_of, headlines, images

BATCHES = images()


def prepared(**qconfig: Any) -> nn.Module:
    return prepare_qat(configured(built(PlainCnn()), **qconfig))


@torch.no_grad()
def run(model: nn.Module) -> None:
    with state_policy("ignore"):
        for batch in BATCHES:
            model(batch)


def mistake_1() -> nn.Module:
    """Model in train(), state never set: this is QAT."""
    model = prepared().train()
    run(model)
    return model.eval()


def mistake_2() -> nn.Module:
    """Model in eval(), state never set: nothing is observed."""
    model = prepared().eval()
    run(model)
    return model


def mistake_3() -> nn.Module:
    """CALIBRATION, then eval() again: nothing is observed."""
    model = prepared().eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model.eval()
    run(model)
    return model


def mistake_4() -> nn.Module:
    """No VALIDATION after calibration: float accuracy is measured."""
    model = prepared().eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    run(model)
    return model.eval()


def mistake_5() -> nn.Module:
    """A branch that did not run during calibration runs now."""
    model = calibrated(configured(built(PlainCnn())), BATCHES)
    model.has_side = True
    return model


MISTAKES = {"ST1": mistake_1, "ST2": mistake_2, "ST3": mistake_3, "ST4": mistake_4, "ST5": mistake_5}


@pytest.mark.parametrize("rule", MISTAKES)
def test_mistake_is_found_and_nothing_else(rule: str) -> None:
    findings = findings_of(MISTAKES[rule](), BATCHES)

    assert headlines(findings) == [(rule, "E", "side.0" if rule == "ST5" else "")]


def test_correct_calibration_has_no_state_finding() -> None:
    assert headlines(findings_of(calibrated(configured(built(PlainCnn())), BATCHES), BATCHES)) == []


@pytest.mark.parametrize("rule", MISTAKES)
def test_patch_runs_and_the_finding_is_gone(rule: str) -> None:
    model = MISTAKES[rule]()
    (finding,) = [f for f in findings_of(model, BATCHES) if f.id == rule]
    if rule in ("ST1", "ST5"):
        model = prepared()  # the first line of the patch says so
        model.has_side = rule == "ST5"

    assert finding.patch is not None
    exec(finding.patch.code, {"model": model, "batches": BATCHES})

    assert headlines(findings_of(model, BATCHES)) == []


def test_qat_after_real_training_is_no_mistake() -> None:
    model = prepared(qconfig=default_qat_8bit_fake_quant_qconfig).train()
    for batch in BATCHES:
        model(batch).square().mean().backward()
    model.eval()
    set_fake_quantize(model, FakeQuantState.VALIDATION)

    assert not any(f.id.startswith("ST") for f in findings_of(model, BATCHES))


def test_qat_without_a_backward_pass_is_found_with_qat_qconfigs_too() -> None:
    model = prepared(qconfig=default_qat_8bit_fake_quant_qconfig).train()
    run(model)

    assert "ST1" in [f.id for f in findings_of(model.eval(), BATCHES)]


def test_validation_without_calibration_is_found() -> None:
    model = prepared().eval()
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    run(model)
    (finding,) = findings_of(model, BATCHES)

    assert (finding.id, finding.title) == ("ST2", "No scale is known: the CALIBRATION state was never set")


def test_calibration_without_a_batch_is_found() -> None:
    model = prepared().eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    (finding,) = findings_of(model, BATCHES)

    assert (finding.id, finding.title) == ("ST2", "No scale is known: no batch was run in the CALIBRATION state")


def test_freshly_prepared_model_in_train_mode_is_found() -> None:
    assert headlines(findings_of(prepared().train(), BATCHES)) == [("ST2", "E", "")]


def test_numbers_of_a_model_without_scales_stand_under_its_state() -> None:
    (finding,) = findings_of(mistake_2(), BATCHES)

    assert any(line.startswith("SE2 W at ") for line in finding.related)


def ids(rule: Any, **fields: Any) -> list[Finding]:
    return list(rule(context(layer("conv"), layer("side"), output("conv"), state=state(**fields))))


@pytest.mark.parametrize(
    "rule",
    [
        qat_instead_of_calibration,
        never_calibrated,
        eval_after_calibration_state,
        evaluated_without_fake_quant,
        called_but_uncalibrated,
    ],
)
def test_float_model_and_sound_model_have_no_state_finding(rule: Any) -> None:
    assert list(rule(context(layer("conv"), output("conv")))) == []
    assert ids(rule) == []


def test_st4_counts_fake_quants_that_are_on_to_the_last() -> None:
    assert ids(evaluated_without_fake_quant, num_fake_quant_on=0, num_observer_on=4) != []
    assert ids(evaluated_without_fake_quant, num_fake_quant_on=1, num_observer_on=4) == []
    assert ids(evaluated_without_fake_quant, num_fake_quant_on=0, num_observer_on=0) == []


def test_st5_names_the_ops_that_run_in_forward_order() -> None:
    (finding,) = ids(called_but_uncalibrated, uncalibrated=("side", "conv", "never_called"))

    assert finding.op == "conv"
    assert finding.title == "2 ops run without a scale, the others are calibrated"
    assert finding.patch is not None
    assert finding.patch.arguments["names"] == "conv,side"


def test_st5_ignores_ops_that_never_run() -> None:
    assert ids(called_but_uncalibrated, uncalibrated=("never_called",)) == []


def test_st5_is_silent_where_nothing_is_calibrated() -> None:
    assert ids(called_but_uncalibrated, uncalibrated=("conv", "side", "a", "b")) == []
