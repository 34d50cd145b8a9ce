"""Draws the still pictures of the archive (matplotlib, PNG): the same facts as the interactive ones."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from profiler.records import Comparison, Finding, Histogram, LayerRecord, ModelRecord
from profiler.report import palette
from profiler.report.limits import Limits
from profiler.report.similarity_table import work_order

NUM_HISTOGRAMS = 6
_DPI = 110


def comparison_charts(comparison: Comparison, findings: Sequence[Finding], limits: Limits) -> dict[str, bytes]:
    """Gives file name -> PNG: error along the network, ranges of both models, histograms of the ops that need work."""
    charts: dict[str, bytes] = {}
    if any(layer.accumulated or layer.injected for layer in comparison.layers):
        charts["error_along_network.png"] = error_chart(comparison, limits)
    for number, model in enumerate((comparison.reference, comparison.test)):
        if model.tensors:
            charts[f"model{number}_statistic.png"] = statistic_chart(model)
    rows = work_order(comparison.layers, findings)
    drawn = [layer for layer in (comparison.layers[row] for row in rows) if _histograms(layer)]
    for layer in drawn[:NUM_HISTOGRAMS]:
        charts[histogram_name(layer)] = histogram_chart(layer)
    return charts


def histogram_name(layer: LayerRecord) -> str:
    """Gives a file name that is legal everywhere, whatever the op is called."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", layer.name).strip("._")[:60]
    return f"op_{layer.index:04d}_{slug or 'unnamed'}.png"


def error_chart(comparison: Comparison, limits: Limits) -> bytes:
    """Gives accumulated and injected SQNR (dB) and the op error in output scales, in forward order."""
    layers = comparison.layers
    figure = Figure(figsize=(11, 6.5))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    accumulated = [layer.accumulated.sqnr_db if layer.accumulated else None for layer in layers]
    injected = [layer.injected.sqnr_db if layer.injected else None for layer in layers]
    op_error = [layer.injected.atol_scales if layer.injected else None for layer in layers]
    _plot(upper, accumulated, "accumulated", palette.ACCUMULATED, "o-")
    _plot(upper, injected, "injected by the op alone", palette.INJECTED, "D")
    upper.axhline(limits.sqnr_db, color=palette.LIMIT, linestyle="--", linewidth=1)
    _label(upper, "SQNR (dB), higher is better")
    if any(value and value > 0 and math.isfinite(value) for value in op_error):
        lower.set_yscale("log")
        lower.yaxis.set_minor_locator(NullLocator())
    _plot(lower, [value or None for value in op_error], "op error on the same input", palette.INJECTED, "D")
    lower.axhline(limits.atol_scales, color=palette.LIMIT, linestyle="--", linewidth=1)
    _label(lower, "output scales, lower is better")
    lower.set_xlabel("op, in forward order")
    return _png(figure)


def statistic_chart(model: ModelRecord) -> bytes:
    """Gives min, max and mean of each tensor of a model in forward order."""
    figure = Figure(figsize=(11, 4.5))
    axes = figure.subplots()
    stats = [tensor.stats for tensor in model.tensors]
    _plot(axes, [item.maximum for item in stats], "max", palette.TEST, "-")
    _plot(axes, [item.minimum for item in stats], "min", palette.REFERENCE, "-")
    _plot(axes, [item.mean for item in stats], "mean", palette.MEAN, "-")
    _label(axes, f"values of {model.stage}")
    axes.set_xlabel("tensor, in forward order")
    return _png(figure)


def histogram_chart(layer: LayerRecord) -> bytes:
    """Gives the histograms of reference and test output of one op, with the quantization range."""
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    for label, histogram, colour in _histograms(layer):
        edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
        axes.stairs(histogram.counts, edges, fill=True, alpha=0.45, color=colour, label=label)
    params = layer.qparams
    if params and len(params.scale) == 1:
        for code in (params.quant_min, params.quant_max):
            axes.axvline(code * params.scale[0], color=palette.CULPRIT, linestyle="--", linewidth=1.2)
    axes.set_yscale("log", nonpositive="clip")
    axes.yaxis.set_minor_locator(NullLocator())
    _label(axes, "count (log)")
    axes.set_title(layer.name, fontsize=10, parse_math=False)
    return _png(figure)


def _histograms(layer: LayerRecord) -> list[tuple[str, Histogram, str]]:
    sides = (
        ("reference", layer.reference_output, palette.REFERENCE),
        ("test", layer.test_output, palette.TEST),
    )
    return [
        (label, stats.histogram, colour)
        for label, stats, colour in sides
        if stats and stats.histogram and stats.histogram.counts and stats.histogram.high > stats.histogram.low
    ]


def _plot(axes: Axes, values: Sequence[float | None], label: str, colour: str, style: str) -> None:
    kept = [math.nan if value is None or not math.isfinite(value) else value for value in values]
    axes.plot(kept, style, color=colour, label=label, markersize=4, linewidth=1.2)


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _png(figure: Figure) -> bytes:
    """Draws without the time and version that matplotlib writes, so that the same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.09, right=0.98, top=0.93, bottom=0.12, hspace=0.12)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()
