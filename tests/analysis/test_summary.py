"""The verdict, as a user reads it."""

from __future__ import annotations

import math

import pytest

from profiler.analysis.summary import output_sqnr_db, verdict
from profiler.records import Comparison, Finding, Severity, StageMetric
from tests.analysis.made import comparison, layer, output


def finding(rule: str, severity: Severity, op: str, title: str) -> Finding:
    return Finding(rule, title, severity, op, "advice", "C")


SHARED = finding("SH1", "E", "neck.conv", "Shared conv: one scale serves 2 calls")
LARGE = finding("RG1", "I", "stem", "One of the largest ranges of the network")
STATE = finding("ST2", "E", "", "No scale is known: set_fake_quantize was never called")
FLOAT_STATE = finding("ST4", "E", "", "Fake quant is off: accuracy measured in this state is float accuracy")


def runs(*values: float) -> list[Comparison]:
    """Float -> calib, then calib -> quantized, with that output SQNR."""
    stages = ("float calib", "calib quantized")
    return [comparison(output("conv", v), stages=s) for v, s in zip(values, stages, strict=False)]


def metrics(**values: float) -> list[StageMetric]:
    return [StageMetric(stage, value) for stage, value in values.items()]


CASES = {
    "healthy": (
        verdict(runs(34.7, 36.0), [LARGE], metrics(float=99.496, calib=99.5, quantized=99.496)),
        "Healthy: the metric stays at 99.50 from float to quantized; output SQNR 34.7 dB (float -> calib); output SQNR "
        "36.0 dB (calib -> quantized); no finding asks for a change.",
    ),
    "no metric": (
        verdict(runs(34.7), [], []),
        "Healthy: output SQNR 34.7 dB (float -> calib); no finding asks for a change.",
    ),
    "bad": (
        verdict(runs(6.0, 21.7), [SHARED, LARGE], metrics(float=98.489, calib=89.924, quantized=89.421)),
        "Bad: the metric falls from 98.49 (float) to 89.42 (quantized), -9.07; output SQNR 6.0 dB (float -> calib); "
        "output SQNR 21.7 dB (calib -> quantized); 1 finding: SH1 at neck.conv, shared conv: one scale serves 2 "
        "calls.",
    ),
    "suspicious": (
        verdict(runs(15.0), [SHARED, SHARED], []),
        "Suspicious: output SQNR 15.0 dB (float -> calib); 2 findings, first: SH1 at neck.conv, shared conv: one scale "
        "serves 2 calls.",
    ),
    "other data": (
        verdict(runs(45.31, 50.0), [], metrics(float=99.24, calib=7.81, quantized=7.81)),
        "Bad: the metric falls from 99.24 (float) to 7.81 (quantized), -91.43; output SQNR 45.3 dB (float -> calib); "
        "output SQNR 50.0 dB (calib -> quantized); the outputs agree on the batches given but not on the data of "
        "evaluate: calibrate with data and preprocessing like its; no finding asks for a change.",
    ),
    "not converted": (
        verdict(runs(34.68), [], [], missing="no integer model could be made (not converted: 1 activation)"),
        "Healthy: output SQNR 34.6 dB (float -> calib); no integer model could be made (not converted: 1 activation); "
        "no finding asks for a change.",
    ),
    "small error": (
        verdict(runs(25.0), [SHARED], []),
        "Small error: output SQNR 25.0 dB (float -> calib); 1 finding: SH1 at neck.conv, shared conv: one scale "
        "serves 2 calls.",
    ),
    "state mistake": (
        verdict(runs(3.0), [STATE, SHARED], metrics(float=98.5, calib=10.0)),
        "State mistake: ST2, no scale is known: set_fake_quantize was never called; no number below counts until "
        "that is repaired.",
    ),
    "evaluated in float": (
        verdict(runs(30.0), [FLOAT_STATE], []),
        "State mistake: output SQNR 30.0 dB (float -> calib); 1 finding: ST4, fake quant is off: accuracy measured "
        "in this state is float accuracy.",
    ),
    "NaN metric": (
        verdict(runs(30.0), [], metrics(float=0.9, calib=0.9, quantized=math.nan)),
        "Broken: the metric is not a number (NaN) in quantized; output SQNR 30.0 dB (float -> calib); no finding "
        "asks for a change.",
    ),
    "equal": (
        verdict(runs(math.inf), [], []),
        "Healthy: output equal in float -> calib; no finding asks for a change.",
    ),
    "zero reference": (
        verdict(runs(-math.inf), [], []),
        "Bad: output all error in float -> calib (the reference is 0); no finding asks for a change.",
    ),
    "nothing comparable": (
        verdict([comparison(layer("conv"))], [], []),
        "Unknown: no output of float -> calib could be compared; no finding asks for a change.",
    ),
    "nothing": (verdict([], [], []), "Unknown: nothing was compared; no finding asks for a change."),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict_reads_like_this(case: str) -> None:
    sentence, expected = CASES[case]

    assert sentence == expected


def test_worst_of_several_outputs_is_named() -> None:
    both = comparison(output("a", 30.0, "model output-0"), output("b", 12.3, "model output-1"))

    assert output_sqnr_db(both) == 12.3
    assert "worst of 2 outputs (model output-1) SQNR 12.3 dB" in verdict([both], [], [])


def test_loss_of_the_metric_keeps_a_model_from_being_healthy() -> None:
    assert verdict(runs(30.0), [], metrics(float=98.0, calib=90.0)).startswith("Suspicious: ")
    assert verdict(runs(30.0), [], metrics(float=98.0, calib=97.5)).startswith("Healthy: ")


def test_worst_comparison_gives_the_grade() -> None:
    assert verdict(runs(30.0, 5.0), [], []).startswith("Bad: ")


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0.9849, 0.8942, "falls from 0.9849 (float) to 0.8942 (calib), -0.0907"),
        (0.12, 0.34, "rises from 0.1200 (float) to 0.3400 (calib), +0.2200"),
        (12345.0, 12001.0, "falls from 12345 (float) to 12001 (calib), -344"),
        (0.0, 0.0, "stays at 0 from float to calib"),
        (50.0, 50.001, "stays at 50.00 from float to calib"),
        (-0.5, -0.6, "falls from -0.5000 (float) to -0.6000 (calib), -0.1000"),
        (1.0, math.inf, "is 1 (float), inf (calib)"),
    ],
)
def test_metric_is_said_in_its_own_points(first: float, last: float, expected: str) -> None:
    assert f"the metric {expected};" in verdict(runs(30.0), [], metrics(float=first, calib=last))


def test_single_metric_is_said_without_a_change() -> None:
    assert "the metric is 0.91 (float);" in verdict(runs(30.0), [], metrics(float=0.91))
