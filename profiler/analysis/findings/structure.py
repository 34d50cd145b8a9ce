"""SH, FU, IN: shared ops, unfused ops, the model's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from profiler.analysis import fixes
from profiler.analysis.context import SCALE_KEEPING, Context, op_of
from profiler.analysis.findings.registry import rule
from profiler.records import Evidence, Finding, LayerRecord, QuantError, Severity, TensorStats, UnfusedGroup

_CODES_PER_STD_OF_INPUT = 8
_CUT_OFF_DB, _RUINED_DB = 30.0, 20.0


@rule("SH1")
def shared_op(context: Context) -> Iterator[Finding]:
    """One module with its own scale runs several times in a forward, on different ranges."""
    names = dict.fromkeys(x.op_name for x in context.layers if x.call > 0 and _has_own_scale(x))
    for name in names:
        calls = [x for x in context.calls_of(name) if x.reference_output is not None]
        ranges = [x.reference_output.absmax for x in calls if x.reference_output is not None]
        if len(ranges) < 2 or min(ranges) <= 0:
            continue
        ratio = max(ranges) / min(ranges)
        cut_off = [(x, x.quant_error) for x in calls if x.quant_error is not None and _is_cut_off(x.quant_error)]
        worst_db = min((error.sqnr_db for _, error in cut_off), default=math.inf)
        severity: Severity = "E" if ratio > 4 or worst_db < _RUINED_DB else ("W" if ratio > 2 or cut_off else "I")
        yield Finding(
            id="SH1",
            title=(
                f"Shared {calls[0].kind or 'op'}: one scale serves {len(calls)} calls whose ranges differ {ratio:.3g}x"
            ),
            severity=severity,
            op=name,
            advice="Give each call a module of its own (a copy of the weights) where the ranges differ; for a "
            "FloatFunctional use one instance per call site. The call with the small range loses "
            f"{math.log2(ratio):.1f} bits" + (", and the one with the large range is cut off." if cut_off else "."),
            cost="Q",
            evidence=(
                Evidence("largest / smallest range over the calls", ratio, "x", "2 (W), 4 (E)"),
                *(Evidence(f"range of {x.name}", r, "absmax") for x, r in zip(calls, ranges, strict=True)),
                *(Evidence(f"values of {x.name} cut off", 100 * e.clip_ratio, "%") for x, e in cut_off),
                *(Evidence(f"own SQNR of {x.name}", e.sqnr_db, "dB", "30 (W), 20 (E)") for x, e in cut_off),
            ),
            source=calls[0].source,
            patch=fixes.unshare(calls[0], len(calls)),
        )


@rule("FU1")
def unfused(context: Context) -> Iterator[Finding]:
    """A batch norm or ReLU behind a conv or linear is an op of its own."""
    for group in context.comparison.unfused:
        layer = context.by_key.get(group.names[0])
        yield Finding(
            id="FU1",
            title=f"Not fused: {' + '.join(t.rpartition('.')[2] for t in group.types)}",
            severity=_unfused_severity(group),
            op=op_of(group.names[0]),
            advice=_fuse_advice(group),
            cost="C",
            evidence=(Evidence("group", ", ".join(group.names)), Evidence("cause", group.cause)),
            source=layer.source if layer is not None else "",
            patch=fixes.fuse(group),
        )


@rule("IN2")
def input_range(context: Context) -> Iterator[Finding]:
    """A model input in int8 uses half of the codes, or few codes per standard deviation."""
    for layer in context.layers:
        stats = layer.reference_output or layer.reference_input
        if layer.kind != "quant_stub" or stats is None or layer.qparams is None or layer.qparams.dtype != "qint8":
            continue
        if stats.var <= 0 or not layer.qparams.is_calibrated or not _reads_model_input(context, layer):
            continue
        is_one_sided = stats.minimum >= 0 or stats.maximum <= 0
        codes_per_std = stats.std / layer.qparams.scale[0]
        if is_one_sided or codes_per_std < _CODES_PER_STD_OF_INPUT:
            yield _input_finding(layer, stats, is_one_sided, codes_per_std)


def _reads_model_input(context: Context, layer: LayerRecord) -> bool:
    """Whether nothing but preprocessing in float stands before the stub."""
    names, seen = list(layer.inputs), set()
    while names:
        source = context.by_key.get(names.pop())
        if source is None or source.name in seen:
            continue
        seen.add(source.name)
        if source.qparams is not None or source.num_params > 0:
            return False
        names.extend(source.inputs)
    return True


def _input_finding(layer: LayerRecord, stats: TensorStats, is_one_sided: bool, codes_per_std: float) -> Finding:
    what = "is one-sided: one bit (6 dB) is lost" if is_one_sided else "has few codes per standard deviation"
    coarse = Evidence("codes per standard deviation", codes_per_std, "codes", f">= {_CODES_PER_STD_OF_INPUT}")
    return Finding(
        id="IN2",
        title=f"The model input {what}",
        severity="W",
        op=layer.op_name,
        advice="Normalise the input around 0 to -1..1 in preprocessing and retrain, or fold the opposite into the "
        "first conv (exact where it has no zero padding). Without any retraining: give the input stub int16.",
        cost="C",
        evidence=(
            Evidence("minimum", stats.minimum, "", "< 0"),
            Evidence("maximum", stats.maximum, "", "> 0"),
            *([coarse] if codes_per_std < _CODES_PER_STD_OF_INPUT else []),
        ),
        source=layer.source,
        patch=fixes.normalise_input(layer.op_name, stats.minimum, stats.maximum),
    )


def _is_cut_off(error: QuantError) -> bool:
    """Whether clipping costs a call more than rounding does, and enough to matter."""
    return error.is_clipped and error.sqnr_db < _CUT_OFF_DB


def _has_own_scale(layer: LayerRecord) -> bool:
    return layer.qparams is not None and layer.kind not in {*SCALE_KEEPING, "quant_stub", "dequant_stub"}


def _unfused_severity(group: UnfusedGroup) -> Severity:
    """A lone ReLU behind an output that is needed before it too is the network's own structure."""
    is_norm = any("BatchNorm" in t for t in group.types[1:])
    return "I" if group.cause.startswith("second consumer") and not is_norm else "W"


def _fuse_advice(group: UnfusedGroup) -> str:
    if group.cause.startswith("second consumer"):
        return (
            f"{_sentence(group.cause)}. Let the other reader take the result of the whole group, or give it a conv "
            "of its own; then fuse. Until then the value between conv and the next op is rounded once more than it "
            "need be."
        )
    if "called as a function" in group.cause:
        return (
            f"{_sentence(group.cause)}. Make it an nn.ReLU module and list it in fuse_modules, or use "
            "prepare_qat_fx, which finds it. Unfused, the negative side of the conv takes up codes that the ReLU "
            "throws away."
        )
    if "shared" in group.cause:
        return f"{_sentence(group.cause)}. Use one module per call site, then fuse."
    return "Nothing hinders it: list the group in fuse_modules before prepare_qat; prepare_qat_fx does it by itself."


def _sentence(cause: str) -> str:
    """A cause at the beginning of a sentence; names keep their case."""
    return f"S{cause[1:]}" if cause.startswith("second consumer") else cause
