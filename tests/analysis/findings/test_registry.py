"""The catalogue of rules: complete, without duplicates, and pure."""

from __future__ import annotations

import pytest

from profiler.analysis.findings import rule_ids, run_rules
from profiler.analysis.findings.registry import rule
from profiler.errors import RegistryError
from tests.analysis.made import context, layer, output, state


def test_every_rule_of_the_catalogue_is_there() -> None:
    expected = "FU1 HP1 IN2 RG1 RG2 RG7 SE2 SH1 ST1 ST2 ST3 ST4 ST5".split()

    assert set(expected) <= set(rule_ids())


def test_rule_with_a_taken_id_is_refused() -> None:
    with pytest.raises(RegistryError, match="rule SE2 is registered twice"):
        rule("SE2")(lambda context: ())


def test_rules_find_nothing_in_a_healthy_comparison_nor_in_an_empty_one() -> None:
    assert run_rules(context()) == []
    assert run_rules(context(layer("conv"), output("conv"), state=state())) == []


def test_rules_bear_records_without_measurements() -> None:
    bare = layer(
        "conv",
        accumulated=None,
        injected=None,
        quant_error=None,
        qparams=None,
        reference_output=None,
        test_output=None,
        status="unmatched",
    )

    assert run_rules(context(bare, output("conv"))) == []
