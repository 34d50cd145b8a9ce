"""Interactive pictures (bokeh): the error along the network, similarity, statistics, and one shared histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import BasicTicker, ColumnDataSource, CustomJS, HoverTool, LogTicker, TapTool
from bokeh.models.annotations import Span, Title
from bokeh.models.layouts import LayoutDOM
from bokeh.plotting import figure

from profiler.records import Comparison, Finding, TensorRecord
from profiler.report import palette
from profiler.report.limits import Limits
from profiler.report.numbers import Good, significant

_TOOLS = "pan,box_zoom,wheel_zoom,reset,save"
_LABELS = {"acc_error": "accumulated", "op_error": "op on the same input", "minimum": "min", "maximum": "max"}
_LABELS |= {"injected": "injected by the op alone"}
_PICK_CODE = """
const picked = cb_data.source.selected.indices
if (picked.length > 0) {
  document.dispatchEvent(new CustomEvent("op-picked", {detail: cb_data.source.data.row[picked[0]]}))
}
"""


def error_picture(comparison: Comparison, findings: Sequence[Finding], limits: Limits) -> LayoutDOM:
    """Gives SQNR (accumulated and injected) and the op error in output scales, per op in forward order.

    Culprits are the ops of findings of severity E or W that are not propagated. A click on a point sends the document
    an `op-picked` event with the op's row index.
    """
    source = ColumnDataSource(_error_columns(comparison, findings))
    upper = _figure("SQNR (dB), higher is better", height=330)
    lower = _figure("op error (output scales), lower is better", height=260, y_axis_type="log", x_range=upper.x_range)
    upper.line("x", "accumulated", source=source, color=palette.ACCUMULATED, line_width=1.5, alpha=0.8)
    marks = [
        _points(upper, source, "accumulated", palette.ACCUMULATED, "circle", "accumulated"),
        _points(upper, source, "injected", palette.INJECTED, "diamond", "injected by the op alone"),
        _points(lower, source, "op_error", palette.INJECTED, "diamond", "op error on the same input"),
    ]
    culprits = _points(upper, source, "culprit", palette.CULPRIT, "triangle", "op with a finding", size=13)
    upper.add_layout(Span(location=limits.sqnr_db, dimension="width", line_color=palette.LIMIT, line_dash="dashed"))
    lower.add_layout(Span(location=limits.atol_scales, dimension="width", line_color=palette.LIMIT, line_dash="dashed"))
    for plot, renderers in ((upper, [marks[0], marks[1], culprits]), (lower, [marks[2]])):
        plot.add_tools(HoverTool(renderers=renderers, tooltips=_ERROR_TIPS, point_policy="snap_to_data"))
        plot.add_tools(TapTool(renderers=renderers, callback=CustomJS(code=_PICK_CODE)))
    lower.xaxis.axis_label = "op, in forward order"
    return column(upper, lower, sizing_mode="stretch_width")


_ERROR_TIPS = [
    ("op", "@name"),
    ("type", "@type"),
    ("accumulated SQNR", "@accumulated_text dB"),
    ("injected SQNR", "@injected_text dB"),
    ("op error", "@op_error_text output scales"),
]


def similarity_picture(comparison: Comparison) -> LayoutDOM:
    """Gives cosine, SQNR and errors in output scales per op; hover shows name and value."""
    source = ColumnDataSource(_error_columns(comparison, ()))
    charts: list[Any] = []
    for title, names, axis in (
        ("similarity (cosine), higher is better", ("cosine",), "linear"),
        ("SQNR (dB), higher is better", ("accumulated", "injected"), "linear"),
        ("error (output scales), lower is better", ("acc_error", "op_error"), "log"),
    ):
        plot = _figure(title, height=260, y_axis_type=axis, **({"x_range": charts[0].x_range} if charts else {}))
        _lines(plot, source, names, (palette.ACCUMULATED, palette.INJECTED))
        charts.append(plot)
    charts[-1].xaxis.axis_label = "op, in forward order"
    return column(*charts, sizing_mode="stretch_width")


def statistic_picture(tensors: Sequence[TensorRecord]) -> LayoutDOM:
    """Gives min, max and mean of each tensor in one chart and the variance in a second one."""
    fields = ("minimum", "maximum", "mean", "var")
    values = {field: [getattr(tensor.stats, field) for tensor in tensors] for field in fields}
    texts = {f"{field}_text": [significant(value) for value in column_] for field, column_ in values.items()}
    names = [f"{tensor.name} {tensor.attr}" for tensor in tensors]
    types = [tensor.type_name for tensor in tensors]
    numbers = {field: _numbers(column_) for field, column_ in values.items()}
    source = ColumnDataSource({"x": np.arange(len(tensors)), "name": names, "type": types, **numbers, **texts})
    upper = _figure("min, max and mean", height=380)
    lower = _figure("variance", height=260, x_range=upper.x_range)
    _lines(upper, source, ("minimum", "maximum", "mean"), (palette.REFERENCE, palette.TEST, palette.MEAN))
    _lines(lower, source, ("var",), (palette.REFERENCE,))
    lower.xaxis.axis_label = "tensor, in forward order"
    return column(upper, lower, sizing_mode="stretch_width")


def histogram_picture() -> LayoutDOM:
    """Gives an empty chart with the sources `reference`, `test` and `limits`, which the page fills for one op."""
    plot = _figure("values (bar height: logarithm of the count)", is_by_op=False, height=240)
    for name, title, colour in (("reference", "reference", palette.REFERENCE), ("test", "test", palette.TEST)):
        source = ColumnDataSource({"left": [], "right": [], "top": []}, name=name)
        bars = {"left": "left", "right": "right", "top": "top", "bottom": 0, "source": source, "legend_label": title}
        plot.quad(**bars, fill_color=colour, line_color=None, fill_alpha=0.45)
    limits = ColumnDataSource({"x": [], "y0": [], "y1": []}, name="limits")
    edge = {"source": limits, "line_color": palette.CULPRIT, "line_dash": "dashed", "line_width": 2}
    plot.segment(x0="x", x1="x", y0="y0", y1="y1", legend_label="quantization range", **edge)
    plot.yaxis.visible = False
    _style_legend(plot)
    return column(plot, sizing_mode="stretch_width")


def _error_columns(comparison: Comparison, findings: Sequence[Finding]) -> dict[str, Any]:
    rows = [row for row, layer in enumerate(comparison.layers) if layer.accumulated or layer.injected]
    layers = [comparison.layers[row] for row in rows]
    culprits = {item.op for item in findings if item.severity in ("E", "W") and item.origin == "own"}
    accumulated = [layer.accumulated.sqnr_db if layer.accumulated else None for layer in layers]
    injected = [layer.injected.sqnr_db if layer.injected else None for layer in layers]
    op_error = [layer.injected.atol_scales if layer.injected else None for layer in layers]
    acc_error = [layer.accumulated.atol_scales if layer.accumulated else None for layer in layers]
    cosine = [layer.accumulated.cosine if layer.accumulated else None for layer in layers]
    is_culprit = [layer.name in culprits or layer.op_name in culprits for layer in layers]
    heights = [_first(pair) for pair in zip(injected, accumulated, strict=True)]
    marked = [height if mark else None for mark, height in zip(is_culprit, heights, strict=True)]
    columns: dict[str, Any] = {
        "row": np.array(rows, dtype=np.int32),
        "x": np.array(rows, dtype=np.int32),
        "name": [layer.name for layer in layers],
        "type": [layer.type_name for layer in layers],
    }
    named: dict[str, tuple[list[float | None], Good]] = {
        "accumulated": (accumulated, "up"),
        "injected": (injected, "up"),
        "op_error": (op_error, "down"),
        "acc_error": (acc_error, "down"),
        "cosine": (cosine, "up"),
    }
    for name, (values, good) in named.items():
        columns[name] = _numbers(values, is_log=good == "down")
        columns[f"{name}_text"] = ["not known" if value is None else significant(value, 4, good) for value in values]
    columns["culprit"] = _numbers(marked)
    return columns


def _first(values: Sequence[float | None]) -> float | None:
    return next((value for value in values if value is not None and math.isfinite(value)), None)


def _numbers(values: Sequence[float | None], is_log: bool = False) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Gives what can be drawn: no value and Inf leave a gap, and so does 0 on a logarithmic axis."""

    def drawn(value: float | None) -> bool:
        return value is not None and math.isfinite(value) and not (is_log and value <= 0)

    with np.errstate(over="ignore"):
        return np.array([value if drawn(value) else math.nan for value in values], dtype=np.float32)


def _figure(title: str, is_by_op: bool = True, **options: Any) -> Any:
    heading = Title(text=title, text_color=palette.INK, text_font_style="normal")
    plot: Any = figure(title=heading, sizing_mode="stretch_width", tools=_TOOLS, active_scroll=None, **options)
    plot.background_fill_color = plot.border_fill_color = None
    plot.outline_line_color = None
    if is_by_op:
        plot.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    if options.get("y_axis_type") == "log":
        plot.yaxis.ticker = LogTicker(mantissas=[1, 2, 5], num_minor_ticks=0, desired_num_ticks=4)
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.grid.grid_line_color = palette.GRID
    plot.grid.grid_line_alpha = 0.2
    for part in ("axis_label", "major_label"):
        setattr(plot.axis, f"{part}_text_color", palette.INK)
    for part in ("axis", "major_tick", "minor_tick"):
        setattr(plot.axis, f"{part}_line_color", palette.INK)
    return plot


def _points(plot: Any, source: ColumnDataSource, name: str, colour: str, marker: str, label: str, size: int = 0) -> Any:
    size = size or (7 if len(source.data["x"]) < 300 else 4)
    options = {"color": colour, "marker": marker, "size": size, "alpha": 0.85, "legend_label": label}
    renderer = plot.scatter("x", name, source=source, nonselection_alpha=0.5, **options)
    _style_legend(plot)
    return renderer


def _lines(plot: Any, source: ColumnDataSource, names: Sequence[str], colours: Sequence[str]) -> None:
    tips = [("name", "@name"), ("type", "@type"), *((_LABELS.get(name, name), f"@{name}_text") for name in names)]
    renderers = []
    for name, colour in zip(names, colours, strict=False):
        plot.line("x", name, source=source, color=colour, legend_label=_LABELS.get(name, name), alpha=0.8)
        renderers.append(
            plot.scatter("x", name, source=source, color=colour, size=4, legend_label=_LABELS.get(name, name))
        )
    plot.add_tools(HoverTool(renderers=renderers, tooltips=tips))
    _style_legend(plot)


def _style_legend(plot: Any) -> None:
    legend = plot.legend[0]
    if legend in plot.center:
        plot.center.remove(legend)
        plot.add_layout(legend, "above")
    legend.background_fill_color = None
    legend.border_line_color = None
    legend.label_text_color = palette.INK
    legend.orientation = "horizontal"
    legend.padding = 0
    legend.location = "left"
    legend.margin = 0
    legend.click_policy = "hide"
