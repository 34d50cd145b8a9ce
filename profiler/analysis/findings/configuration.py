"""HP: outputs that are quantized though nothing needs them quantized."""

from __future__ import annotations

from collections.abc import Iterator

from profiler.analysis import fixes
from profiler.analysis.context import WEIGHTED, Context
from profiler.analysis.findings.registry import rule
from profiler.records import Evidence, Finding, LayerRecord

_PRECISION = {"qint8": "standard", "qint16": "fine"}


@rule("HP1")
def quantized_output(context: Context) -> Iterator[Finding]:
    """A weighted op feeds only DeQuantStubs, and its output is rounded all the same."""
    for layer in context.layers:
        if layer.kind not in WEIGHTED or layer.call > 0 or layer.qparams is None or layer.qparams.dtype == "qint16":
            continue
        if all(_feeds_only_dequant(context, call) for call in context.calls_of(layer.op_name)):
            yield _finding(context, layer, layer.qparams.dtype)


def _finding(context: Context, layer: LayerRecord, dtype: str) -> Finding:
    return Finding(
        id="HP1",
        title=f"The output layer is left in {dtype}",
        severity="W",
        op=layer.op_name,
        advice="Give this op an out qconfig: its int32 accumulator then goes to float directly, at no cost, and the "
        "results are not rounded.",
        cost="C",
        evidence=(
            Evidence(
                "output dtype",
                f"{dtype} ({_PRECISION.get(dtype, dtype)} precision)",
                "",
                "float32 (high precision)",
            ),
            Evidence("consumers", ", ".join(c.name for c in context.consumers_of(layer))),
        ),
        source=layer.source,
        patch=fixes.high_precision_output(context, layer),
    )


def _feeds_only_dequant(context: Context, layer: LayerRecord) -> bool:
    consumers = [c for c in context.consumers_of(layer) if not c.is_output]
    if not consumers:
        return False
    return all(
        c.kind == "dequant_stub" or (c.kind in ("shape", "dropout") and _feeds_only_dequant(context, c))
        for c in consumers
    )
