"""visualize_model: the graph of ops as an SVG picture."""

from __future__ import annotations

import html
import webbrowser
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import nn

from profiler.quant.deploy.guards import require_quantized, target_march
from profiler.quant.deploy.layers import LayerFact, collect_layers
from profiler.quant.march import March
from profiler.quant.march_table import unsupported_reason

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 230, 46, 24, 34, 20
_COLOURS = {"qint8": "#cfe8d5", "qint16": "#cfdcf2", "float": "#eeeeee", "problem": "#f6c9c4"}


def visualize_model(
    module: nn.Module,
    example_inputs: Any,
    march: March | str | None = None,
    save_path: str | Path | None = None,
    show: bool = False,
) -> str:
    """Draw the ops of a quantized model, one row per step from the input, coloured by the dtype of their result.

    Args:
        module: prepared (VALIDATION) or converted model in eval.
        example_inputs: a tensor, a tuple or list of inputs, or a dict by parameter name.
        march: target; ops that it cannot run are drawn red. The one that is set by default.
        save_path: where to write the `.svg`; None writes nothing.
        show: open the written file in the browser.

    Returns:
        The SVG text.

    Raises:
        ModelError: a float model.
        StateError: training mode or live observers.
    """
    target = target_march(march)
    require_quantized(module, "visualize_model")
    layers = collect_layers(module, example_inputs)
    text = _draw(layers, _places(layers), target)
    if save_path is not None:
        path = Path(save_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        if show:
            webbrowser.open(path.resolve().as_uri())
    return text


def _places(layers: list[LayerFact]) -> dict[str, tuple[int, int]]:
    """Column and row of each op: the row below all of its producers, columns in the order of running."""
    rows: dict[str, int] = {}
    counts: dict[int, int] = defaultdict(int)
    places = {}
    for layer in layers:
        row = max((rows[name] + 1 for name in layer.producers if name in rows), default=0)
        rows[layer.name] = row
        places[layer.name] = (counts[row], row)
        counts[row] += 1
    return places


def _draw(layers: list[LayerFact], places: dict[str, tuple[int, int]], march: March) -> str:
    columns = 1 + max((c for c, _ in places.values()), default=0)
    rows = 1 + max((r for _, r in places.values()), default=0)
    width = 2 * _MARGIN + columns * (_WIDTH + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + rows * (_HEIGHT + _GAP_Y) - _GAP_Y
    parts = [_edge(places[name], places[layer.name]) for layer in layers for name in layer.producers if name in places]
    parts += [_box(layer, places[layer.name], march) for layer in layers]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11">\n<title>{len(layers)} ops, {march.value}</title>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    return _MARGIN + place[0] * (_WIDTH + _GAP_X), _MARGIN + place[1] * (_HEIGHT + _GAP_Y)


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = _corner(start), _corner(end)
    x1, x2, y1 = x1 + _WIDTH // 2, x2 + _WIDTH // 2, y1 + _HEIGHT
    middle = (y1 + y2) // 2
    return f'<path d="M{x1} {y1} C{x1} {middle} {x2} {middle} {x2} {y2}" fill="none" stroke="#888"/>'


def _box(layer: LayerFact, place: tuple[int, int], march: March) -> str:
    x, y = _corner(place)
    dtype = layer.outputs[0].dtype
    inputs = [t.dtype for t in layer.inputs if t.dtype.startswith("q")]
    problem = unsupported_reason(march, layer.operator, inputs, "", layer.module) if inputs and layer.operator else ""
    colour = _COLOURS["problem"] if problem else _COLOURS.get(dtype, _COLOURS["float"])
    shape = "x".join(map(str, layer.outputs[0].shape))
    title = " | ".join(part for part in (layer.name, layer.kind, layer.source, problem) if part)
    lines = (_short(layer.name), f"{layer.kind.rpartition('.')[2]}  {shape}  {dtype.removeprefix('torch.')}")
    texts = "".join(
        f'<text x="{x + 8}" y="{y + 18 + 16 * i}">{html.escape(line)}</text>' for i, line in enumerate(lines)
    )
    return (
        f'<g><title>{html.escape(title)}</title><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" '
        f'fill="{colour}" stroke="#555"/>{texts}</g>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 36 else f"...{name[-33:]}"
