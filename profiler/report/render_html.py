"""Renders the pages: profiler.html and the small chart pages, each one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bokeh.models.layouts import LayoutDOM
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import profiler
from profiler.errors import ReportError
from profiler.records import Comparison, LayerRecord, ReportData
from profiler.report import figures, op_details, page_tables, summary
from profiler.report.cells import Texts
from profiler.report.embed import bokeh_script, figure_item
from profiler.report.limits import Limits
from profiler.report.similarity_table import similarity_table
from profiler.report.text import out_dtype_line

NUM_OPEN_FINDINGS = 12


def render_page(data: ReportData) -> str:
    """Gives profiler.html. It fetches nothing; the same report gives the same bytes."""
    texts = Texts()
    panels = [_panel(data, comparison, prefix, texts) for prefix, comparison in named_comparisons(data)]
    page_data = {
        "texts": texts.items,
        "labels": op_details.LABELS,
        "digits": op_details.DIGITS,
        "comparisons": {panel["key"]: panel.pop("data") for panel in panels},
        "findings": [f"{item.finding.id} {item.finding.title}" for item in summary.finding_views(data)],
    }
    return _render(
        "page.html",
        data=data,
        panels=panels,
        page_data=page_data,
        findings=summary.finding_views(data),
        num_open_findings=NUM_OPEN_FINDINGS,
        counts=summary.severity_counts(data),
        stage_tiles=summary.stage_tiles(data),
        histogram=figure_item(figures.histogram_picture(), "histogram-"),
    )


def render_chart_page(title: str, subtitle: str, figure: LayoutDOM) -> str:
    """Gives a page that holds one figure."""
    return _render("chart.html", title=title, subtitle=subtitle, figure=figure_item(figure, "chart-"))


def named_comparisons(data: ReportData) -> list[tuple[str, Comparison]]:
    """Gives each comparison with the name of its folder and anchors: "" for the first, then the mode."""
    names: list[str] = []
    for number, comparison in enumerate(data.comparisons):
        repeated = sum(item.mode == comparison.mode for item in data.comparisons[1:number])
        names.append("" if number == 0 else f"{comparison.mode}_{repeated + 1}" if repeated else comparison.mode)
    return list(zip(names, data.comparisons, strict=True))


def templates_folder() -> Path:
    """Gives the folder of the templates: inside the installed package, or beside it in the source tree."""
    package = Path(profiler.__file__).parent
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / "page.html").is_file():
            return folder
    raise ReportError(f"{package / 'templates'}: the page templates are missing; install the package again")


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(templates_folder())
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=loader, trim_blocks=True, lstrip_blocks=True
    )
    # Sorted keys would move bokeh's references before what they refer to; all data is made in a fixed order.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "ensure_ascii": False}
    return environment


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(bokeh=Markup(bokeh_script()), **values)


def _panel(data: ReportData, comparison: Comparison, name: str, texts: Texts) -> dict[str, Any]:
    """Gives what the page shows of one comparison; `data` is for the script, the rest for the template."""
    findings = summary.ordered_findings(data) if not name else ()
    tables = _tables(data, comparison, findings, texts)
    figure = figures.error_picture(comparison, findings, Limits.of(data.metrics))
    return {
        "key": name or comparison.mode,
        "prefix": f"{name}-" if name else "",
        "comparison": comparison,
        "tiles": summary.output_tiles(comparison, Limits.of(data.metrics)),
        "tables": tables,
        "not_compared": _not_compared(comparison.layers),
        "dtype_line": out_dtype_line(comparison.qconfig.outputs),
        "is_main": not name,
        "figure": figure_item(figure, f"{name or 'main'}-"),
        "data": {
            "tables": {key: table.plain() for key, table in tables.items()},
            "details": op_details.op_details(comparison.layers, findings, texts),
        },
    }


def _tables(data: ReportData, comparison: Comparison, findings: Sequence[Any], texts: Texts) -> dict[str, Any]:
    rows = summary.rows_of_ops(comparison)
    limits = Limits.of(data.metrics)
    qconfig = page_tables.qconfig_tables(comparison, rows, texts)
    return {
        "similarity": similarity_table(comparison, findings, limits, texts),
        "statistic0": page_tables.statistic_table(comparison.reference.tensors, rows, texts),
        "statistic1": page_tables.statistic_table(comparison.test.tensors, rows, texts),
        "weights": page_tables.weights_table(comparison, limits, texts),
        "called": page_tables.called_table(comparison, rows, texts),
        "unfused": page_tables.unfused_table(comparison, texts),
        **{f"qconfig_{key}": table for key, table in qconfig.items()},
        "effects": page_tables.effects_table(data, texts),
    }


def _not_compared(layers: Sequence[LayerRecord]) -> dict[str, int]:
    """Gives how many op calls have which status, the compared ones left out."""
    counts: dict[str, int] = {}
    for layer in layers:
        if layer.status != "compared":
            counts[layer.status.replace("_", " ")] = counts.get(layer.status.replace("_", " "), 0) + 1
    return dict(sorted(counts.items()))
