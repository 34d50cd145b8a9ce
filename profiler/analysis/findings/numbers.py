"""RG: range against resolution of single tensors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator

from profiler.analysis import fixes
from profiler.analysis.context import SCALE_KEEPING, Context
from profiler.analysis.findings.registry import rule
from profiler.records import Evidence, Finding, LayerRecord, Patch, QuantError, Severity, TensorStats

_COARSE_W, _COARSE_E = 3.0, 1.0
_CLIPPED_W_DB, _CLIPPED_E_DB = 30.0, 20.0
_SIZE_FACTOR, _SIZE_TOP = 16.0, 5
_COARSE_CHANNELS_RATIO, _SPREAD = 0.25, 8.0


@rule("RG1")
def too_few_codes(context: Context) -> Iterator[Finding]:
    """The range is so much wider than the bulk of the values that few codes are left for them."""
    coarse = [
        (layer, error)
        for layer, error in _int8_layers(context)
        if not error.is_clipped and error.codes_per_std < _COARSE_W and _varies(layer)
    ]
    worst = _worst_calls(coarse, lambda error: error.codes_per_std)
    for layer, error in worst:
        yield _finding(
            "RG1",
            layer,
            "E" if error.codes_per_std < _COARSE_E else "W",
            f"One standard deviation spans only {error.codes_per_std:.3g} int8 codes",
            "A few large values set the range: a BatchNorm behind the op, a ReLU6 or weight decay in training keeps "
            "them small. If the model stays as it is, give the op int16, in the calib and in the QAT qconfig.",
            (
                Evidence("codes per standard deviation", error.codes_per_std, "codes", "3 (W), 1 (E)"),
                *_widest_channel(layer),
                *_range_evidence(layer),
            ),
            fixes.int16(context, [layer]),
        )
    yield from _largest(context, {layer.op_name for layer, _ in worst})


@rule("RG2")
def clipped(context: Context) -> Iterator[Finding]:
    """More energy is lost to clipping than to rounding, and a scale that covers the range would lose less.

    An observer that cuts off rare outliers to gain resolution for the rest has done its work: no finding.
    """
    truncated = [
        (layer, error)
        for layer, error in _int8_layers(context, with_stubs=True)
        if error.is_clipped and error.codes_per_std >= _COARSE_W and error.sqnr_db < _CLIPPED_W_DB
    ]
    for layer, error in _worst_calls(truncated, lambda error: error.sqnr_db):
        if layer.qparams is None:
            continue
        absmax = max(stats.absmax for x in context.calls_of(layer.op_name) if (stats := _reference(x)) is not None)
        scale = absmax / ((layer.qparams.quant_max - layer.qparams.quant_min) / 2)
        if _noise_at(error, scale / layer.qparams.scale[0]) >= error.clip_energy + error.rounding_energy:
            continue
        yield _finding(
            "RG2",
            layer,
            "E" if error.sqnr_db < _CLIPPED_E_DB else "W",
            f"The scale cuts off {100 * error.clip_ratio:.3g} % of the values",
            f"Set fixed scale {scale:.6g} (it covers the reference's range), calibrate with more data (50-100 "
            "images), or change the observer from percentile to mse or min_max.",
            (
                Evidence("own SQNR", error.sqnr_db, "dB", "30 (W), 20 (E)"),
                Evidence("clip energy / rounding energy", _ratio(error), "x", "1"),
                Evidence("values cut off", 100 * error.clip_ratio, "%"),
                *_range_evidence(layer),
            ),
            fixes.fixed_scale(context, layer, scale, layer.qparams.dtype),
        )


@rule("RG7")
def uneven_channels(context: Context) -> Iterator[Finding]:
    """One wide channel sets the scale, and many of the others span only a few codes."""
    found = set()
    for layer, _ in _int8_layers(context):
        channels = layer.test_output.channels if layer.test_output is not None else None
        if channels is None or channels.num_live < 4 or layer.op_name in found or channels.absmax_median <= 0:
            continue
        share = channels.num_coarse / channels.num_live
        spread = channels.absmax_max / channels.absmax_median
        if share <= _COARSE_CHANNELS_RATIO or spread < _SPREAD:
            continue
        found.add(layer.op_name)
        yield _finding(
            "RG7",
            layer,
            "W",
            f"Channel {channels.widest_channel} is {spread:.3g}x as wide as the median channel and sets the scale of "
            "all",
            "Move the channel's gain into the next layer's weights (cross-layer equalization), or add a BatchNorm "
            "behind the op and retrain; else give the op int16.",
            (
                Evidence("channels whose std spans < 3 codes", 100 * share, "%", "25"),
                Evidence("widest / median channel", spread, "x", f"{_SPREAD:g}"),
                Evidence("live channels", channels.num_live, f"of {channels.num_channels}"),
                *_range_evidence(layer),
            ),
            fixes.int16(context, [layer]),
        )


def _widest_channel(layer: LayerRecord) -> tuple[Evidence, ...]:
    """Which channel sets the range, where one stands out."""
    channels = layer.test_output.channels if layer.test_output is not None else None
    if channels is None or channels.absmax_median <= 0 or channels.absmax_max < _SPREAD * channels.absmax_median:
        return ()
    spread = channels.absmax_max / channels.absmax_median
    return (Evidence(f"range of channel {channels.widest_channel} / median channel", spread, "x"),)


def _noise_at(error: QuantError, factor: float) -> float:
    """Rounding energy of all values at `factor` times the present scale."""
    return error.rounding_energy * factor * factor / max(1 - error.clip_ratio, 1e-12)


def _int8_layers(context: Context, *, with_stubs: bool = False) -> Iterator[tuple[LayerRecord, QuantError]]:
    """Compared op calls with an int8 scale of their own. How well an input fills its range is for the input rules."""
    without = SCALE_KEEPING if with_stubs else {*SCALE_KEEPING, "quant_stub"}
    for layer in context.layers:
        is_int8 = layer.qparams is not None and layer.qparams.dtype == "qint8" and layer.qparams.is_calibrated
        if is_int8 and layer.quant_error is not None and layer.kind not in without:
            yield layer, layer.quant_error


def _largest(context: Context, found: set[str]) -> Iterator[Finding]:
    """Information: outputs far larger than the others. Size alone is no loss, quantization is scale invariant."""
    sizes = {x.op_name: x.reference_output.absmax for x in context.layers if x.reference_output is not None}
    if len(sizes) <= _SIZE_TOP:
        return
    limit = _SIZE_FACTOR * statistics.median(sizes.values())
    top = sorted(sizes, key=lambda name: -sizes[name])[:_SIZE_TOP]
    for layer, _ in _int8_layers(context):
        if layer.call == 0 and layer.op_name in top and layer.op_name not in found and sizes[layer.op_name] > limit:
            yield _finding(
                "RG1",
                layer,
                "I",
                "One of the largest ranges of the network",
                "Size alone is no loss, but look at it: a missing BatchNorm or weight decay shows here first.",
                (Evidence("absmax", sizes[layer.op_name], "", f"{limit:.4g} (16 x median)"),),
                None,
            )


def _finding(
    rule_id: str,
    layer: LayerRecord,
    severity: Severity,
    title: str,
    advice: str,
    evidence: tuple[Evidence, ...],
    patch: Patch | None,
) -> Finding:
    return Finding(
        id=rule_id,
        title=title,
        severity=severity,
        op=layer.op_name,
        advice=advice,
        cost="C",
        evidence=evidence,
        source=layer.source,
        patch=patch,
    )


def _worst_calls(
    found: list[tuple[LayerRecord, QuantError]], badness: Callable[[QuantError], float]
) -> list[tuple[LayerRecord, QuantError]]:
    """Of several calls of one op the worst (least) one, in forward order of the first calls."""
    worst: dict[str, tuple[LayerRecord, QuantError]] = {}
    for layer, error in found:
        best = worst.get(layer.op_name)
        if best is None or badness(error) < badness(best[1]):
            worst[layer.op_name] = (layer, error)
    return list(worst.values())


def _ratio(error: QuantError) -> float:
    return error.clip_energy / error.rounding_energy if error.rounding_energy > 0 else math.inf


def _varies(layer: LayerRecord) -> bool:
    return layer.reference_output is not None and layer.reference_output.var > 0


def _reference(layer: LayerRecord) -> TensorStats | None:
    """What the op's scale has to hold; an automatic stub has no op in the reference, but passes its input on."""
    return layer.reference_output or layer.reference_input


def _range_evidence(layer: LayerRecord) -> tuple[Evidence, ...]:
    stats = _reference(layer)
    if stats is None or layer.qparams is None:
        return ()
    return (
        Evidence("largest magnitude", stats.absmax),
        Evidence("standard deviation", stats.std),
        Evidence("scale", layer.qparams.scale[0]),
    )
