"""SE: where the error of the outputs enters."""

from __future__ import annotations

import math
from collections.abc import Iterator

from profiler.analysis import fixes
from profiler.analysis.context import WEIGHTED, Context
from profiler.analysis.findings.registry import rule
from profiler.records import Evidence, Finding, LayerRecord, Patch

_BAD_DB, _DROP_DB = 20.0, 6.0


@rule("SE2")
def culprit(context: Context) -> Iterator[Finding]:
    """The error jumps at this op, and no output behind it recovers."""
    found = set()
    for layer in context.layers:
        drop = _drop_db(context, layer)
        if drop is None or layer.accumulated is None or layer.op_name in found:
            continue
        sqnr = layer.accumulated.sqnr_db
        outputs = [x for x in context.behind(layer) if x.is_output]
        if not (sqnr < _BAD_DB and drop >= _DROP_DB) or not outputs:
            continue
        if any(o.accumulated is not None and o.accumulated.sqnr_db >= sqnr + _DROP_DB for o in outputs):
            continue
        found.add(layer.op_name)
        yield _finding(context, layer, drop, outputs)


def is_amplifier(layer: LayerRecord) -> bool:
    """Whether the op's own error is a small part (6 dB below) of its output's: it amplifies what its inputs bring."""
    if layer.accumulated is None or layer.injected is None:
        return False
    return layer.injected.sqnr_db >= layer.accumulated.sqnr_db + _DROP_DB


def _has_coarse_weights(layer: LayerRecord) -> bool:
    """Whether a weighted op's error is far above what the quantizer of its output makes."""
    if layer.kind not in WEIGHTED or layer.accumulated is None:
        return False
    own = math.inf if layer.quant_error is None else layer.quant_error.sqnr_db
    return own >= layer.accumulated.sqnr_db + _DROP_DB


def _finding(context: Context, layer: LayerRecord, drop: float, outputs: list[LayerRecord]) -> Finding:
    assert layer.accumulated is not None
    sqnr = layer.accumulated.sqnr_db
    falls = f"SQNR falls to {sqnr:.1f} dB" if math.isinf(drop) else f"SQNR falls by {drop:.1f} dB to {sqnr:.1f} dB"
    patch: Patch | None
    sources = context.sources(layer) if is_amplifier(layer) else ()
    if sources:
        names = ", ".join(s.name for s in sources)
        title = f"The error of its input is amplified here: {falls}"
        advice = (
            f"This op adds little itself; give {names} more resolution (int16). The rows behind it inherit the error."
        )
        patch = fixes.int16(context, sources)
    elif _has_coarse_weights(layer):
        title = f"The error enters here: {falls}"
        advice = (
            "Its output has codes enough, so its weights are too coarse: a few large ones set the scale of their "
            "channel. Keep them small in training, or give this op int16 weights. The rows behind it inherit its "
            "error."
        )
        patch = fixes.int16_weight(context, layer)
    else:
        title = f"The error enters here: {falls}"
        patch = fixes.int16(context, [layer]) if layer.qparams is not None else None
        advice = "Repair this op first: int16 if its output is too coarse. The rows behind it inherit its error."
    return Finding(
        id="SE2",
        title=title,
        severity="W",
        op=layer.op_name,
        advice=advice,
        cost="C",
        evidence=(
            Evidence("SQNR of the output", sqnr, "dB", "20"),
            Evidence("drop against its worst input", drop, "dB", "6"),
            *_own_error(layer),
            *(Evidence(f"SQNR of {o.name}", o.accumulated.sqnr_db, "dB") for o in outputs if o.accumulated is not None),
        ),
        source=layer.source,
        patch=patch,
    )


def _drop_db(context: Context, layer: LayerRecord) -> float | None:
    """How far the op's SQNR lies below that of its worst input; model inputs are exact."""
    if layer.accumulated is None or layer.status != "compared":
        return None
    inputs = [x.accumulated.sqnr_db for x in context.compared_inputs(layer) if x.accumulated is not None]
    worst = min(inputs, default=math.inf)
    return 0.0 if worst == layer.accumulated.sqnr_db else worst - layer.accumulated.sqnr_db


def _own_error(layer: LayerRecord) -> tuple[Evidence, ...]:
    if layer.injected is None:
        return ()
    return (Evidence("SQNR with the test's own input (error of this op alone)", layer.injected.sqnr_db, "dB"),)
