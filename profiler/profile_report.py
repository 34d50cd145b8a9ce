"""The report as the user holds it: verdict, findings, tables, paths; needs neither torch nor the model."""

from __future__ import annotations

import html
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.errors import ReportError
from profiler.records import Coverage, Finding, LayerRecord, ReportData, StageMetric
from profiler.store import load_report

if TYPE_CHECKING:
    import pandas as pd

_PAGE, _ARCHIVE, _REPORT = "profiler.html", "profiler.zip", "report.json"


class ProfileReport:
    """What a run found, and where it was written.

    Attributes:
        data: all that was measured and found.
        out_dir: the folder of the report; None for one that was not written.
    """

    def __init__(self, data: ReportData, out_dir: Path | None = None) -> None:
        self.data = data
        self.out_dir = out_dir

    @classmethod
    def load(cls, path: Path | str) -> ProfileReport:
        """Reads a report.json, or the one in a folder.

        Raises:
            ReportError: there is none, it is damaged, or has another schema version.
        """
        path = Path(path)
        path = path / _REPORT if path.is_dir() else path
        return cls(load_report(path), path.parent)

    @classmethod
    def write(cls, data: ReportData, out_dir: Path | str, *, make_zip: bool = True) -> ProfileReport:
        """Writes every output of `data` into a folder.

        Raises:
            ReportError: the folder cannot be written; an old report in it is as it was.
        """
        from profiler.report.write import write_report

        write_report(data, out_dir, make_zip=make_zip)
        return cls(data, Path(out_dir))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, dropped or could not be done."""
        return self.data.notes

    @property
    def verdict(self) -> str:
        """What was found, in one sentence."""
        return self.data.verdict

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The causes that were found, the most severe first."""
        return self.data.findings

    @property
    def layers(self) -> tuple[LayerRecord, ...]:
        """The op calls of the main comparison, in forward order."""
        return self.data.main.layers if self.data.main else ()

    @property
    def coverage(self) -> Coverage:
        """How many op calls of the main comparison ran, how many were compared, and why the others were not."""
        return self.data.main.coverage if self.data.main else Coverage()

    @property
    def stage_metrics(self) -> tuple[StageMetric, ...]:
        """What `evaluate` returned for each stage."""
        return self.data.stage_metrics

    @property
    def html_path(self) -> Path | None:
        """The page, where it was written."""
        return self._written(_PAGE)

    @property
    def zip_path(self) -> Path | None:
        """The archive to send to a colleague, where it was written."""
        return self._written(_ARCHIVE)

    def frame(self, name: str, mode: str | None = None) -> pd.DataFrame:
        """Gives a table, for example "similarity", "statistic0", "weights" or "findings".

        Args:
            name: the table; an unknown name is an error that lists the known ones.
            mode: the comparison, "FvsQ", "QvsQ" or "CvsQ"; None is the main one.

        Raises:
            ReportError: no such table or comparison.
        """
        from profiler.report.tables import frame

        return frame(self.data, name, mode)

    def open(self) -> Path:
        """Shows the page in the browser and gives its path.

        Raises:
            ReportError: the page is not there.
        """
        path = self.html_path
        if path is None:
            place = self.out_dir or "this report"
            raise ReportError(f"{place}: there is no {_PAGE}; write it with ProfileReport.write(report.data, out_dir)")
        webbrowser.open(path.resolve().as_uri())
        return path

    def _written(self, name: str) -> Path | None:
        path = self.out_dir / name if self.out_dir else None
        return path if path and path.is_file() else None

    def _summary(self) -> list[str]:
        lines = [f"{item.stage}: {item.value:.6g}" for item in self.stage_metrics]
        lines.append(f"{self.coverage.compared} of {self.coverage.executed} op calls compared")
        return lines + [f"{item.severity} {item.id} {item.op}: {item.title}" for item in self.findings[:5]]

    def __repr__(self) -> str:
        more = len(self.findings) - 5
        rest = [f"... {more} more findings"] if more > 0 else []
        place = [f"page: {self.html_path}"] if self.html_path else []
        lines = [self.verdict, *self._summary(), *rest, *place]
        return "ProfileReport(\n" + "".join(f"  {line}\n" for line in lines) + ")"

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self._summary())
        page = self.html_path
        link = f'<p><a href="{html.escape(page.resolve().as_uri())}">{_PAGE}</a></p>' if page else ""
        return f"<p><b>{html.escape(self.verdict)}</b></p><ul>{items}</ul>{link}"
