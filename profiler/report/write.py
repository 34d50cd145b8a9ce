"""Writes a whole report: text, CSV, pictures, pages, report.json and the archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from bokeh.models.layouts import LayoutDOM

from profiler.errors import ReportError
from profiler.records import Comparison, ReportData
from profiler.report import charts, figures, tables, text
from profiler.report.archive import write_archive
from profiler.report.limits import Limits
from profiler.report.render_html import named_comparisons, render_chart_page, render_page
from profiler.report.summary import ordered_findings
from profiler.report.swap import MANIFEST, staging, swap_in, write_manifest
from profiler.store import dump_report

PAGE, ARCHIVE, REPORT = "profiler.html", "profiler.zip", "report.json"
_CSV_NAMES = {
    "similarity.csv": "similarity",
    "ordered_op_error_similarity.csv": "ordered_op_error",
    "layers.csv": "layers",
    "model0_statistic.csv": "statistic0",
    "model1_statistic.csv": "statistic1",
    "weight_comparison.csv": "weights",
    "module_called_count.csv": "called",
    "unfused_operations.csv": "unfused",
    "qconfig_info.csv": "qconfig",
    "qconfig_weights.csv": "weight_qconfig",
    "qconfig_messages.csv": "qconfig_messages",
}


@dataclass(frozen=True)
class WrittenFiles:
    """What `write_report` wrote; `files` holds every path, sorted."""

    html_path: Path
    zip_path: Path | None
    json_path: Path
    files: tuple[Path, ...]


def write_report(data: ReportData, out_dir: Path | str, *, make_zip: bool = True) -> WrittenFiles:
    """Writes all outputs of a report into a folder; an old report there is replaced as a whole or not at all.

    Args:
        data: the report.
        out_dir: the folder; made if it does not exist. Files in it that no report wrote are left alone.
        make_zip: also write profiler.zip, which holds all the files.

    Returns:
        The paths.

    Raises:
        ReportError: the folder cannot be written; what was there is as it was.
    """
    out_dir = Path(out_dir)
    contents = report_files(data)
    try:
        with staging(out_dir) as folder:
            names = _stage(contents, folder, data, make_zip)
            swap_in(folder, out_dir, names)
    except OSError as error:
        raise ReportError(
            f"{out_dir}: cannot write the report here: {error.strerror or error} ({error.filename or out_dir}); "
            "nothing was changed; give out_dir a folder that you may write to, with space left"
        ) from error
    zip_path = out_dir / ARCHIVE if make_zip else None
    files = tuple(out_dir / name for name in sorted(names))
    return WrittenFiles(out_dir / PAGE, zip_path, out_dir / REPORT, files)


def report_files(data: ReportData) -> dict[str, bytes]:
    """Gives file name -> content of all files of a report but the manifest and the archive."""
    contents = _general_files(data)
    for name, comparison in named_comparisons(data):
        prefix = f"{name}/" if name else ""
        files = _text_files(comparison) | _csv_files(data, comparison) | _chart_pages(data, comparison)
        contents |= {prefix + key: value.encode("utf-8") for key, value in files.items()}
        findings = () if name else ordered_findings(data)
        pictures = charts.comparison_charts(comparison, findings, Limits.of(data.metrics))
        contents |= {f"{prefix}charts/{key}": value for key, value in pictures.items()}
    return contents


def _stage(contents: dict[str, bytes], folder: Path, data: ReportData, make_zip: bool) -> list[str]:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    names = [*contents, MANIFEST, *([ARCHIVE] if make_zip else [])]
    write_manifest(folder, names)
    if make_zip:
        write_archive(folder / ARCHIVE, folder, [*contents, MANIFEST], data.created)
    return names


def _general_files(data: ReportData) -> dict[str, bytes]:
    files = {
        PAGE: render_page(data),
        REPORT: dump_report(data),
        "findings.txt": text.findings_text(data),
        "findings.csv": _csv(tables.findings(data)),
        "environment.txt": text.environment_text(data),
        "journal.txt": text.journal_text(data),
    }
    if data.stage_metrics:
        files["stage_metrics.csv"] = _csv(tables.metrics(data))
    if data.effects:
        files["effects.csv"] = _csv(tables.effects(data))
    return {name: content.encode("utf-8") for name, content in files.items()}


def _text_files(comparison: Comparison) -> dict[str, str]:
    return {
        "similarity.txt": text.similarity_text(comparison),
        "ordered_op_error_similarity.txt": text.ordered_similarity_text(comparison),
        "model0_statistic.txt": text.statistic_text(comparison.reference),
        "model1_statistic.txt": text.statistic_text(comparison.test),
        "weight_comparison.txt": text.weights_text(comparison),
        "module_called_count.txt": text.called_text(comparison),
        "unfused_operations.txt": text.unfused_text(comparison),
        "qconfig_info.txt": text.qconfig_text(comparison),
        "model0.txt": comparison.reference.printout + "\n",
        "model1.txt": comparison.test.printout + "\n",
    }


def _csv_files(data: ReportData, comparison: Comparison) -> dict[str, str]:
    return {name: _csv(tables.COMPARISON_TABLES[table](comparison)) for name, table in _CSV_NAMES.items()}


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n", na_rep="")


def _chart_pages(data: ReportData, comparison: Comparison) -> dict[str, str]:
    pages: dict[str, tuple[str, LayoutDOM]] = {
        "similarity.html": ("Similarity", figures.similarity_picture(comparison))
    }
    for number, model in enumerate((comparison.reference, comparison.test)):
        picture = figures.statistic_picture(model.tensors)
        pages[f"model{number}_statistic.html"] = (f"Statistics of {model.stage}", picture)
    subtitle = f"{data.title}: {comparison.reference.stage} against {comparison.test.stage}"
    return {name: render_chart_page(title, subtitle, picture) for name, (title, picture) in pages.items()}
