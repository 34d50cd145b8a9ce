"""What the page shows of one op call when it is opened: facts as text and two small histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from profiler.records import Finding, Histogram, LayerRecord, PairStats, QuantParams, TensorStats
from profiler.report.cells import Cell, Texts
from profiler.report.numbers import Good, significant
from profiler.report.similarity_table import missing_reason, scale_reason

NUM_BINS = 48
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"

LABELS = (
    "source", "inputs", "fused with", "parameters", "output dtype", "quantization range", "weight",
    "accumulated mse", "accumulated rms (output scales)", "KL (nats)", "op rms (output scales)",
    "codes per standard deviation", "clipped share", "output quantizer alone (dB)",
    "reference input", "reference output", "test output",
)  # fmt: skip


def op_details(layers: Sequence[LayerRecord], findings: Sequence[Finding], texts: Texts) -> dict[str, Any]:
    """Gives facts, histograms and finding numbers of each op call.

    Args:
        layers: the op calls, in row order.
        findings: the findings of the report, numbered as on the page.
        texts: the page's shared texts.

    Returns:
        `facts` (one list of cells per op call, after `LABELS`; what the similarity row shows is not repeated),
        `histograms` (or None) and `findings`.
    """
    numbers: dict[str, list[int]] = {}
    for number, finding in enumerate(findings):
        numbers.setdefault(finding.op, []).append(number)
    return {
        "facts": [_facts(layer, texts) for layer in layers],
        "histograms": [_histograms(layer) for layer in layers],
        "findings": {
            str(row): sorted({*numbers.get(layer.name, ()), *numbers.get(layer.op_name, ())})
            for row, layer in enumerate(layers)
            if layer.name in numbers or layer.op_name in numbers
        },
    }


def _facts(layer: LayerRecord, texts: Texts) -> list[Cell]:
    scale = scale_reason(layer)
    weight = _weight_cell(layer.weight_qparams, texts)
    dtype = texts.shared(_dtype_text(layer.qparams)) if layer.qparams else texts.missing(scale)
    single = layer.qparams.scale[0] if layer.qparams and len(layer.qparams.scale) == 1 else None
    bounds = _range_text(layer.qparams) if layer.qparams and single is not None else ""
    head: list[Cell] = [
        texts.shared(layer.source) if layer.source else texts.missing("not known"),
        texts.shared(", ".join(layer.inputs)) if layer.inputs else texts.missing("not known"),
        texts.shared(", ".join(layer.fused_names)) if layer.fused_names else texts.missing("nothing"),
        str(layer.num_params),
        dtype,
        bounds or texts.missing(scale),
        weight,
    ]
    return [*head, *_error_facts(layer, texts), *_stats_facts(layer, texts)]


def _error_facts(layer: LayerRecord, texts: Texts) -> list[Cell]:
    reason, scale = missing_reason(layer), scale_reason(layer)
    own = "not measured on the same input" if layer.status == "compared" else reason
    cells = [
        _field(layer.accumulated, name, texts, scale if name == "rms_lsb" and layer.accumulated else reason)
        for name in ("mse", "rms_lsb", "kl")
    ]
    cells.append(_field(layer.injected, "rms_lsb", texts, scale if layer.injected else own))
    error = layer.quant_error
    values = (error.codes_per_std, error.clip_ratio, error.sqnr_db) if error else (None, None, None)
    return [*cells, *(_number(value, texts, scale) for value in values)]


def _stats_facts(layer: LayerRecord, texts: Texts) -> list[Cell]:
    stats = (layer.reference_input, layer.reference_output, layer.test_output)
    return [_stats_text(item) if item else texts.missing(missing_reason(layer)) for item in stats]


def _stats_text(stats: TensorStats) -> str:
    text = f"{significant(stats.minimum)} to {significant(stats.maximum)}, std {significant(stats.std)}"
    broken = [f"{count} {name}" for count, name in ((stats.num_nan, "NaN"), (stats.num_inf, "Inf")) if count]
    return ", ".join([text, *broken])


def _weight_cell(params: QuantParams | None, texts: Texts) -> Cell:
    if params is None:
        return texts.missing("no quantized weight")
    scale = f"scale {significant(params.scale[0])}" if len(params.scale) == 1 else f"{len(params.scale)} scales"
    return texts.shared(f"{params.dtype}, {scale}")


def _dtype_text(params: QuantParams) -> str:
    notes = ["not calibrated"] if not params.is_calibrated else ["fixed scale"] if params.is_fixed else []
    return ", ".join([params.dtype, *notes])


def _range_text(params: QuantParams) -> str:
    return " to ".join(significant(code * params.scale[0]) for code in (params.quant_min, params.quant_max))


def _field(pair: PairStats | None, name: str, texts: Texts, reason: str) -> Cell:
    return _number(getattr(pair, name) if pair else None, texts, reason, "down")


def _number(value: float | None, texts: Texts, reason: str, good: Good = "") -> Cell:
    return texts.missing(reason) if value is None else significant(value, 4, good)


def _histograms(layer: LayerRecord) -> list[Any] | None:
    """Gives [low, high, reference, test, range low, range high]: heights as digits of base 64, on common bins."""
    found = [stats.histogram if stats else None for stats in (layer.reference_output, layer.test_output)]
    held = [item for item in found if item and item.counts and math.isfinite(item.high - item.low)]
    if not held:
        return None
    low, high = min(item.low for item in held), max(item.high for item in held)
    pad = 0.0 if high > low else max(abs(low) / 100, 1e-6)
    low, high = low - pad, high + pad
    edges = np.linspace(low, high, NUM_BINS + 1)
    bars = [_digits(item, edges) if item in held else "" for item in found]
    params = layer.qparams
    limits = [None, None]
    if params and len(params.scale) == 1:
        limits = [_short(code * params.scale[0]) for code in (params.quant_min, params.quant_max)]  # type: ignore[misc]
    return [_short(low), _short(high), *bars, *limits]


def _digits(histogram: Histogram | None, edges: Any) -> str:
    """Spreads the counts over the edges and gives the logarithm of each count, the highest bar as the last digit."""
    assert histogram is not None
    own_edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    if histogram.high <= histogram.low:
        counts = np.histogram([histogram.low], edges)[0] * float(sum(histogram.counts))
    else:
        total = np.concatenate([[0.0], np.cumsum(np.array(histogram.counts, dtype=float))])
        counts = np.diff(np.interp(edges, own_edges, total))
    heights = np.log1p(np.maximum(counts, 0.0))
    top = float(heights.max())
    levels = np.ceil(heights / top * (len(DIGITS) - 1)) if top > 0 else heights
    return "".join(DIGITS[int(level)] for level in levels)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
