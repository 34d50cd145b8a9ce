"""SH, FU, IN: shared ops, unfused ops, the model's inputs."""

from __future__ import annotations

from collections.abc import Iterator

from profiler.analysis.context import SCALE_KEEPING, Context
from profiler.analysis.findings.registry import rule
from profiler.records import Evidence, Finding, LayerRecord, Patch, Severity, TensorStats, UnfusedGroup

_CODES_PER_STD_OF_INPUT = 8


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
        is_clipped = any(
            x.quant_error is not None and x.quant_error.is_clipped and x.quant_error.sqnr_db < 30 for x in calls
        )
        severity: Severity = "E" if ratio > 4 or is_clipped else ("W" if ratio > 2 else "I")
        yield Finding(
            id="SH1",
            title=(
                f"Shared {calls[0].kind or 'op'}: one scale serves {len(calls)} calls whose ranges differ {ratio:.3g}x"
            ),
            severity=severity,
            op=name,
            advice=(
                "Give each call a module of its own (copies of the weights, or tied weights) where the "
                "ranges differ; for a "
                "function or FloatFunctional use one instance per call site. The call with the small range loses "
                f"{_bits(ratio):.1f} bits."
            ),
            cost="Q",
            evidence=(
                Evidence("largest / smallest range over the calls", ratio, "x", "2 (W), 4 (E)"),
                *(Evidence(f"range of {x.name}", r, "absmax") for x, r in zip(calls, ranges, strict=True)),
            ),
            source=calls[0].source,
            patch=_unshare(name, len(calls)),
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
            op=_op_of(group.names[0]),
            advice=_fuse_advice(group),
            cost="C",
            evidence=(Evidence("group", ", ".join(group.names)), Evidence("cause", group.cause)),
            source=layer.source if layer is not None else "",
            patch=_fuse_patch(group),
        )


@rule("IN2")
def input_range(context: Context) -> Iterator[Finding]:
    """A model input uses half of the codes, or few codes per standard deviation."""
    for layer in context.layers:
        stats = layer.reference_input
        if layer.kind != "quant_stub" or layer.inputs or stats is None or layer.qparams is None:
            continue
        is_one_sided = (stats.minimum >= 0 or stats.maximum <= 0) and stats.var > 0
        codes_per_std = stats.std / layer.qparams.scale[0]
        is_coarse = layer.qparams.dtype == "qint8" and stats.var > 0 and codes_per_std < _CODES_PER_STD_OF_INPUT
        if is_one_sided or is_coarse:
            yield _input_finding(layer, stats, is_one_sided, codes_per_std)


def _input_finding(layer: LayerRecord, stats: TensorStats, is_one_sided: bool, codes_per_std: float) -> Finding:
    middle, half = (stats.minimum + stats.maximum) / 2, max((stats.maximum - stats.minimum) / 2, 1e-12)
    what = "is one-sided: one bit (6 dB) is lost" if is_one_sided else "has few codes per standard deviation"
    return Finding(
        id="IN2",
        title=f"The model input {what}",
        severity="W",
        op=layer.op_name,
        advice=(
            "Normalise the input around 0 to -1..1 in preprocessing (the first conv can take the opposite "
            "into its weight and "
            "bias), or give the input int16."
        ),
        cost="C",
        evidence=(
            Evidence("minimum", stats.minimum, "", "< 0"),
            Evidence("maximum", stats.maximum, "", "> 0"),
            Evidence("codes per standard deviation", codes_per_std, "codes", f">= {_CODES_PER_STD_OF_INPUT}"),
        ),
        source=layer.source,
        patch=Patch(
            "normalise_input",
            layer.op_name,
            f"x = (x - {middle:.6g}) / {half:.6g}   # before {layer.op_name}; retrain, or fold the opposite "
            f"into the first conv",
            {"shift": middle, "scale": half},
        ),
    )


def _has_own_scale(layer: LayerRecord) -> bool:
    return layer.qparams is not None and layer.kind not in {*SCALE_KEEPING, "quant_stub", "dequant_stub"}


def _bits(ratio: float) -> float:
    bits = 0.0
    while ratio >= 2:
        ratio, bits = ratio / 2, bits + 1
    return bits + (ratio - 1)


def _unshare(name: str, num_calls: int) -> Patch:
    path, variable = name, name.replace(".", "_")
    code = "\n".join(
        ["import copy", f"{variable} = [model.get_submodule({path!r})]"]
        + [f"{variable}.append(copy.deepcopy({variable}[0]))   # for call {i}" for i in range(1, num_calls)]
        + [f"# register {variable}[1:] beside {name} and call one per call site, before prepare"]
    )
    return Patch("unshare", name, code, {"num_calls": num_calls})


def _op_of(name: str) -> str:
    return name.partition("(")[0]


def _unfused_severity(group: UnfusedGroup) -> Severity:
    """A lone ReLU behind an output that is needed before it too is the network's own structure."""
    is_norm = any("BatchNorm" in t for t in group.types[1:])
    return "I" if group.cause.startswith("second consumer") and not is_norm else "W"


def _fuse_advice(group: UnfusedGroup) -> str:
    if group.cause.startswith("second consumer"):
        return (
            f"{group.cause}. Let the other reader take the result of the whole group, or give it a conv of its "
            f"own; then fuse. "
            "An unfused BatchNorm is quantized twice: once at the conv, once behind itself."
        )
    if "called as a function" in group.cause:
        return (
            f"{group.cause}. Make it an nn.ReLU module and list it in fuse_modules, or use prepare_qat_fx, "
            f"which finds it."
        )
    if "shared" in group.cause:
        return f"{group.cause}. Use one module per call site, then fuse."
    return "Fuse the group before prepare; prepare_qat_fx does it by itself."


def _fuse_patch(group: UnfusedGroup) -> Patch:
    names = ", ".join(repr(_op_of(n)) for n in group.names)
    code = f"fuse_modules(model, [{names}], inplace=True)   # before prepare_qat"
    if "called as a function" in group.cause or "second consumer" in group.cause:
        code = f"# {group.cause}\n# after that is changed:\n{code}"
    return Patch("fuse", _op_of(group.names[0]), code, {"names": ",".join(group.names)})
