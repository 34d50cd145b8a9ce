"""One root cause, one headline; the order of headlines."""

from __future__ import annotations

from profiler.analysis.findings import run_rules
from profiler.analysis.rank import rank
from profiler.records import Finding, Patch, Severity
from tests.analysis.made import context, layer, output, pair, state


def finding(
    rule: str, severity: Severity, op: str, *, names: str = "", title: str = "title", gain: float | None = None
) -> Finding:
    patch = Patch("fuse", op, "", {"names": names}) if names else None
    return Finding(rule, title, severity, op, "advice", "C", patch=patch, expected_gain_db=gain)


CHAIN = context(
    layer("conv"),
    layer("bn", ("conv",)),
    layer("relu_0", ("bn",), kind="relu", accumulated=pair(10.0), injected=pair(float("inf"))),
    layer("next", ("relu_0",), accumulated=pair(8.0), injected=pair(30.0)),
    layer("last", ("next",), accumulated=pair(8.0), injected=pair(8.5)),
    output("last", 8.0),
)


def ranked(*findings: Finding) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(f.id, f.op, f.related) for f in rank(findings, CHAIN)]


def test_findings_at_one_op_collapse_under_the_most_severe() -> None:
    found = ranked(finding("SH1", "W", "conv"), finding("RG2", "E", "conv"), finding("SE2", "W", "conv"))

    assert found == [("RG2", "conv", ("SH1 W: title", "SE2 W: title"))]


def test_tie_at_one_op_goes_to_the_earlier_family() -> None:
    found = ranked(finding("SE2", "W", "conv"), finding("RG1", "W", "conv"), finding("FU1", "W", "conv"))

    assert found == [("FU1", "conv", ("RG1 W: title", "SE2 W: title"))]


def test_finding_in_an_unfused_group_collapses_into_it() -> None:
    found = ranked(finding("SE2", "W", "relu_0"), finding("FU1", "W", "conv", names="conv,bn(1),relu_0"))

    assert found == [("FU1", "conv", ("relu_0", "SE2 W at relu_0: title"))]


def test_two_groups_of_one_shared_conv_are_one_line() -> None:
    one, other = (finding("FU1", "W", "conv", names=n) for n in ("conv,relu_0", "conv(1),relu_0(1)"))

    assert ranked(one, other) == [("FU1", "conv", ())]


def test_amplified_error_stands_under_the_finding_at_its_source() -> None:
    found = ranked(finding("RG7", "W", "bn"), finding("SE2", "W", "next"))

    assert found == [("RG7", "bn", ("next", "SE2 W at next: title"))]


def test_amplified_error_finds_the_group_that_its_source_is_in() -> None:
    found = ranked(finding("FU1", "W", "conv", names="conv,bn"), finding("SE2", "W", "next"))

    assert [f[0] for f in found] == ["FU1"]


def test_error_of_its_own_stays_a_headline() -> None:
    found = ranked(finding("RG7", "W", "next"), finding("SE2", "W", "last"))

    assert [f[:2] for f in found] == [("RG7", "next"), ("SE2", "last")]


def test_information_at_the_source_hides_no_warning() -> None:
    found = ranked(finding("RG1", "I", "bn"), finding("SE2", "W", "next"))

    assert [f[:2] for f in found] == [("SE2", "next"), ("RG1", "bn")]


def test_numbers_stand_under_a_state_mistake_and_structure_does_not() -> None:
    found = ranked(finding("ST2", "E", ""), finding("RG1", "E", "bn"), finding("HP1", "W", "last"))

    assert found == [("ST2", "", ("bn", "RG1 E at bn: title")), ("HP1", "last", ())]


def test_numbers_at_and_behind_uncalibrated_ops_stand_under_st5() -> None:
    found = ranked(
        finding("ST5", "E", "bn", names="bn"), finding("RG2", "W", "last"), finding("RG2", "W", "conv", title="before")
    )

    assert found == [("ST5", "bn", ("last", "RG2 W at last: title")), ("RG2", "conv", ())]


def test_state_that_spoils_nothing_leaves_the_numbers_alone() -> None:
    found = ranked(finding("ST4", "E", ""), finding("RG1", "W", "bn"))

    assert [f[0] for f in found] == ["ST4", "RG1"]


def test_order_is_severity_then_gain_then_forward() -> None:
    found = ranked(
        finding("HP1", "I", "conv"),
        finding("RG1", "W", "next"),
        finding("RG1", "W", "bn"),
        finding("RG2", "W", "last", gain=3.0),
        finding("SH1", "E", "relu_0"),
        finding("ST4", "E", ""),
    )

    assert [f[1] for f in found] == ["", "relu_0", "last", "bn", "next", "conv"]


def test_nothing_found_is_nothing_ranked() -> None:
    assert rank([], CHAIN) == ()


def test_order_of_the_rules_does_not_matter() -> None:
    made = context(*CHAIN.comparison.layers, state=state(uncalibrated=("bn",)))
    findings = run_rules(made)

    assert len(findings) > 1
    assert rank(findings, made) == rank(reversed(findings), made)
