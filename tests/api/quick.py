"""A quick stand-in for rendering, which is tested elsewhere."""

from __future__ import annotations

from pathlib import Path

from profiler.records import ReportData
from profiler.store import save_report


def write_quickly(data: ReportData, out_dir: Path, *, make_zip: bool) -> None:
    """report.json as always, and the verdict for a page."""
    out_dir.mkdir(parents=True, exist_ok=True)
    save_report(data, out_dir / "report.json")
    (out_dir / "profiler.html").write_text(data.verdict, "utf-8")
