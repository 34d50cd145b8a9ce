"""What the command line shows: progress on stderr, and a summary of a report on stdout."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from profiler.profile_report import ProfileReport
from profiler.records import SEVERITY_ORDER, Finding, StageMetric

NUM_FINDINGS = 8
"""Findings in the summary; the page has them all."""
_PLAIN_WIDTH = 120  # of output that goes to a file or a pipe, where there is no terminal to ask
_SEVERITY_STYLE = {"E": "bold red", "W": "yellow", "I": "cyan"}


def make_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; in a file or a pipe of a fixed width, without colours."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_WIDTH)
    return console


def make_log_handler() -> logging.Handler:
    """Writes log records to stderr, one line each; in a terminal above the progress bars, not through them."""
    console = make_console(stderr=True)
    if console.is_terminal:
        return RichHandler(console=console, show_time=False, show_path=False)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    return handler


class StepProgress:
    """Shows the steps of a run: bars in a terminal, otherwise one line when a step begins.

    Call it as `progress(step, done, total)`; a step with another text ends the one before.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step = ""
        self._task: TaskID | None = None
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
            )

    def __enter__(self) -> StepProgress:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            if error is None:
                self._finish_step()
            self._progress.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        if step != self._step:
            self._finish_step()
            self._step = step
            if self._progress is None:
                self._console.print(Text(step))
            else:
                self._task = self._progress.add_task(step, total=max(total, 1))
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=max(total, 1))

    def _finish_step(self) -> None:
        if self._progress is None or self._task is None:
            return
        total = next(task.total for task in self._progress.tasks if task.id == self._task)
        self._progress.update(self._task, completed=total or 1)


def print_summary(console: Console, report: ProfileReport, *, num_findings: int = NUM_FINDINGS) -> None:
    """Prints verdict, accuracy of the stages, coverage, the first findings, and where page and archive are."""
    console.print()
    console.print(Text(report.verdict, style="bold"))
    if report.stage_metrics:
        console.print()
        console.print(stage_table(report.stage_metrics))
    console.print()
    console.print(Text(_coverage_line(report)))
    for note in report.notes:
        console.print(Text(f"Note: {note}"))
    if report.findings:
        console.print()
        console.print(findings_table(report.findings[:num_findings], title=_count_line(report.findings)))
        if len(report.findings) > num_findings:
            console.print(f"{len(report.findings) - num_findings} more on the page")
    else:
        console.print("Findings: none")
    print_paths(console, report)


def print_paths(console: Console, report: ProfileReport) -> None:
    """Prints where page and archive are, never broken over two lines."""
    console.print()
    for label, path in (("Page", report.html_path), ("Archive", report.zip_path)):
        if path is not None:
            console.print(Text(f"{label + ':':<9}{path}"), soft_wrap=True)


def stage_table(metrics: Sequence[StageMetric]) -> Table:
    """What `evaluate` gave for each stage, and its distance from the first one."""
    table = Table("stage", title="Evaluation", title_justify="left", title_style="bold")
    table.add_column("value", justify="right")
    table.add_column(f"against {metrics[0].stage}", justify="right")
    for metric in metrics:
        difference = metric.value - metrics[0].value
        table.add_row(
            Text(metric.stage),
            format_value(metric.value),
            "" if metric is metrics[0] else f"{difference:+.4g}" if math.isfinite(difference) else "not a number",
        )
    return table


def findings_table(findings: Sequence[Finding], *, title: str) -> Table:
    """One row per finding: severity, id, op, what to do."""
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=True)
    table.add_column("")
    table.add_column("id", no_wrap=True)
    table.add_column("op", overflow="fold", max_width=36)
    table.add_column("what to do", overflow="fold", ratio=1)
    for finding in findings:
        gain = f"\nmeasured gain: {finding.measured_gain}" if finding.measured_gain else ""
        related = "".join(f"\nsame cause: {line}" for line in finding.related)
        advice = Text.assemble((finding.title, "bold"), "\n", finding.advice, gain, (related, "dim"))
        severity = Text(finding.severity, style=_SEVERITY_STYLE[finding.severity])
        table.add_row(severity, finding.id, Text(finding.op), advice)
    return table


def format_value(value: float) -> str:
    """Four decimals that never claim more than the value holds: 0.99996 gives 0.9999, not 1.0000.

    >>> format_value(0.99996), format_value(0.9748), format_value(1.0), format_value(97.48110)
    ('0.9999', '0.9748', '1.0000', '97.4811')
    """
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.4f}"
    if float(text) == round(value) != value:
        step = 1e-4 if float(text) < value else -1e-4
        text = f"{float(text) + step:.4f}"
    return text


def _coverage_line(report: ProfileReport) -> str:
    coverage = report.coverage
    reasons = "; ".join(f"{reason} ({count})" for reason, count in sorted(coverage.reasons.items()))
    line = f"Compared {coverage.compared} of {coverage.executed} op calls"
    return f"{line}; not compared: {reasons}" if reasons else line


def _count_line(findings: Sequence[Finding]) -> str:
    names = {"E": "wrong result (E)", "W": "costs accuracy (W)", "I": "to look at (I)"}
    counts = Counter(finding.severity for finding in findings)
    return "Findings: " + ", ".join(f"{counts[level]} {names[level]}" for level in SEVERITY_ORDER if counts[level])
