"""The summary and the progress lines, without a terminal and with one."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from profiler.console import StepProgress, format_value, make_console, print_summary
from profiler.profile_report import ProfileReport
from profiler.records import Coverage, Finding, StageMetric


@dataclass
class FakeReport:
    """What a summary reads of a ProfileReport."""

    verdict: str = "int8 loses 20 points; the error enters at [conv1]."
    notes: tuple[str, ...] = ("no march was set: bayes is assumed",)
    findings: tuple[Finding, ...] = ()
    stage_metrics: tuple[StageMetric, ...] = ()
    coverage: Coverage = field(default_factory=lambda: Coverage(12, 9, {"uncalled": 2, "unmatched": 1}))
    html_path: Path | None = Path("out/profiler.html")
    zip_path: Path | None = None


def make_finding(index: int, severity: str = "E") -> Finding:
    return Finding(
        id=f"SH{index}",
        title=f"Title {index}",
        severity=severity,  # type: ignore[arg-type]
        op=f"blocks[{index}].conv",
        advice=f"Give [bold]branch {index}[/] a conv of its own.",
        cost="Fl",
    )


def summary_of(report: FakeReport, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(console, cast(ProfileReport, report))
    return cast(io.StringIO, console.file).getvalue()


def test_print_summary_shows_verdict_coverage_and_page() -> None:
    text = summary_of(FakeReport())
    assert "int8 loses 20 points; the error enters at [conv1]." in text
    assert "Compared 9 of 12 op calls; not compared: uncalled (2); unmatched (1)" in text
    assert "Findings: none" in text
    assert "Note: no march was set: bayes is assumed" in text
    assert "Page:    out/profiler.html" in text
    assert "Archive" not in text


def test_print_summary_shows_stages_and_their_distance_from_float() -> None:
    stages = (StageMetric("float", 0.975), StageMetric("calib", 0.9), StageMetric("quantized", math.nan))
    text = summary_of(FakeReport(stage_metrics=stages))
    rows = [line.split() for line in text.splitlines() if "float" in line or "calib" in line or "quantized" in line]
    assert "against" in rows[0]
    assert {"0.9750", "0.9000", "-0.075", "nan"} <= {cell for row in rows for cell in row}


def test_print_summary_shows_findings_in_order_and_counts_the_rest() -> None:
    findings = tuple(make_finding(index, severity) for index, severity in enumerate("EEEEWWWWIII"))
    text = summary_of(FakeReport(findings=findings))
    assert "Findings: 4 wrong result (E), 4 costs accuracy (W), 3 to look at (I)" in text
    positions = [text.index(f"blocks[{index}].conv") for index in range(8)]
    assert positions == sorted(positions)
    assert "Give [bold]branch 0[/] a conv of its own." in text  # what a user wrote is never markup
    assert "blocks[8].conv" not in text
    assert "3 more on the page" in text


def test_print_summary_never_breaks_a_path() -> None:
    path = Path("/".join(["a_long_folder_name"] * 12)) / "profiler.html"
    assert str(path) in summary_of(FakeReport(html_path=path, zip_path=path.with_suffix(".zip")), width=40)


def test_step_progress_without_terminal_prints_each_step_once() -> None:
    console = Console(file=io.StringIO(), width=80)
    with StepProgress(console) as progress:
        for done in range(3):
            progress("Calibrating", done, 3)
        progress("Comparing [conv]", 0, 1)
    assert cast(io.StringIO, console.file).getvalue() == "Calibrating\nComparing [conv]\n"


def test_step_progress_in_terminal_fills_a_step_when_the_next_begins() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with StepProgress(console) as progress:
        progress("Calibrating", 1, 3)
        progress("Comparing [conv]", 0, 0)
    text = cast(io.StringIO, console.file).getvalue()
    assert "3/3" in text
    assert "Comparing [conv]" in text


def test_step_progress_after_an_error_leaves_the_step_unfinished() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)

    def run() -> None:
        with StepProgress(console) as progress:
            progress("Calibrating", 1, 3)
            raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        run()
    assert "3/3" not in cast(io.StringIO, console.file).getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (1.0, "1.0000"),
        (0.99996, "0.9999"),
        (1.00004, "1.0001"),
        (-0.99996, "-0.9999"),
        (99.99999, "99.9999"),
        (97.4811, "97.4811"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_format_value_never_claims_more_than_the_value_holds(value: float, text: str) -> None:
    assert format_value(value) == text


def test_make_console_without_terminal_is_wide_enough_for_tables() -> None:
    console = make_console()
    assert console.is_terminal or console.width >= 120
