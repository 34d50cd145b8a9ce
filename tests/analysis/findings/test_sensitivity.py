"""SE2: where the error enters, and the ops that only amplify what their inputs bring."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn

from profiler.analysis.context import Context
from profiler.analysis.findings.sensitivity import culprit, is_amplifier
from tests.analysis.made import context, layer, output, pair, quant_error
from tests.analysis.toys import UnevenWeights, built, calibrated, configured, findings_of, headlines, images

BATCHES = images()
for _batch in BATCHES:
    _batch[:, 0] *= 0.001  # nearly silent


def model(factor: float) -> nn.Module:
    return configured(built(UnevenWeights(factor)))


@pytest.mark.parametrize(("factor", "expected"), [(100.0, [("SE2", "W", "conv")]), (2.0, [])])
def test_op_whose_weights_round_away_is_found_and_nothing_else(factor: float, expected: list[object]) -> None:
    assert headlines(findings_of(calibrated(model(factor), BATCHES), BATCHES)) == expected


def test_weight_patch_runs_and_the_finding_is_gone() -> None:
    toy = model(100.0)
    (finding,) = findings_of(calibrated(copy.deepcopy(toy), BATCHES), BATCHES)
    assert "its weights are too coarse" in finding.advice

    assert finding.patch is not None
    exec(finding.patch.code, {"model": toy})

    assert headlines(findings_of(calibrated(toy, BATCHES), BATCHES)) == []


def chain(source_db: float, op_db: float, output_db: float, **fields: Any) -> Context:
    return context(
        layer("source", accumulated=pair(source_db)),
        layer("op", ("source",), **{"accumulated": pair(op_db), "injected": pair(op_db), **fields}),
        output("op", output_db),
    )


@pytest.mark.parametrize(
    ("source_db", "op_db", "output_db", "is_found"),
    [
        (40.0, 19.99, 19.99, True),
        (40.0, 20.0, 20.0, False),
        (24.0, 18.0, 18.0, True),  # a drop of 6 dB exactly
        (23.9, 18.0, 18.0, False),
        (40.0, 15.0, 20.9, True),
        (40.0, 15.0, 21.0, False),  # the output recovers by 6 dB exactly
        (float("inf"), 10.0, 10.0, True),
        (float("inf"), float("inf"), float("inf"), False),
    ],
)
def test_se2_limits(source_db: float, op_db: float, output_db: float, is_found: bool) -> None:
    assert [f.op for f in culprit(chain(source_db, op_db, output_db)) if f.op == "op"] == (["op"] if is_found else [])


def test_op_that_reaches_no_output_is_no_culprit() -> None:
    assert list(culprit(context(layer("op", accumulated=pair(5.0))))) == []


def test_drop_is_measured_against_the_worst_input() -> None:
    layers = (
        layer("good"),
        layer("bad", accumulated=pair(21.0)),
        layer("add", ("good", "bad"), accumulated=pair(16.0)),
        output("add", 16.0),
    )

    assert list(culprit(context(*layers))) == []


def test_inputs_that_were_not_compared_are_looked_through() -> None:
    hidden = {"status": "unmatched", "accumulated": None, "injected": None}
    layers = (
        layer("source", accumulated=pair(40.0)),
        layer("hidden", ("source",), **hidden),
        layer("op", ("hidden",), accumulated=pair(10.0), injected=pair(10.0)),
        output("op", 10.0),
    )

    (finding,) = culprit(context(*layers))

    assert finding.op == "op"
    assert "falls by 30.0 dB" in finding.title


def test_first_op_is_measured_against_an_exact_input() -> None:
    (finding,) = culprit(context(layer("op", accumulated=pair(10.0), injected=pair(10.0)), output("op", 10.0)))

    assert finding.title == "The error enters here: SQNR falls to 10.0 dB"


@pytest.mark.parametrize(("injected_db", "expected"), [(16.0, True), (15.9, False), (float("inf"), True)])
def test_amplifier_adds_6_db_less_than_its_output_has(injected_db: float, expected: bool) -> None:
    assert is_amplifier(layer("op", accumulated=pair(10.0), injected=pair(injected_db))) == expected


def test_amplifier_patch_is_for_its_sources_through_ops_that_hand_on_a_scale() -> None:
    layers = (
        layer("source", accumulated=pair(30.0)),
        layer("pool", ("source",), kind="max_pool", accumulated=pair(30.0)),
        layer("relu", ("pool",), kind="relu", accumulated=pair(10.0), injected=pair(float("inf"))),
        output("relu", 10.0),
    )

    (finding,) = culprit(context(*layers))

    assert (finding.op, finding.title[:38]) == ("relu", "The error of its input is amplified he")
    assert finding.patch is not None
    assert finding.patch.target == "source"
    assert "get_submodule('source')" in finding.patch.code


def test_op_with_a_coarse_output_gets_int16() -> None:
    (finding,) = culprit(chain(40.0, 10.0, 10.0, quant_error=quant_error(sqnr_db=10.5)))

    assert finding.patch is not None
    assert finding.patch.action == "int16"


def masked(score_db: float) -> Context:
    """Attention scores plus a mask of -1e38, then a softmax; both in float."""
    in_float: dict[str, Any] = {"qparams": None, "quant_error": None, "kind": ""}
    return context(
        layer("scores", accumulated=pair(score_db), injected=pair(score_db)),
        layer("add_0", ("scores",), accumulated=pair(780.0), **in_float),
        layer("softmax_0", ("add_0",), accumulated=pair(15.0), injected=pair(float("inf")), **in_float),
        output("softmax_0", 15.0),
    )


def test_mask_does_not_make_the_softmax_behind_it_a_culprit() -> None:
    assert [f.op for f in culprit(masked(18.0))] == ["scores"]


def test_float_op_that_amplifies_gets_a_patch_for_what_was_rounded_before_it() -> None:
    (finding,) = culprit(masked(30.0))

    assert (finding.op, finding.title) == (
        "softmax_0",
        "The error of its input is amplified here: SQNR falls by 15.0 dB to 15.0 dB",
    )
    assert finding.patch is not None
    assert finding.patch.target == "scores"
