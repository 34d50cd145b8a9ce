"""SE: where the error of the outputs enters."""

from __future__ import annotations

import math
from collections.abc import Iterator

from profiler.analysis.context import Context, call_key
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
        outputs = _outputs_behind(context, layer)
        if sqnr >= _BAD_DB or drop < _DROP_DB or not outputs:
            continue
        recovered = [o for o in outputs if o.accumulated is not None and o.accumulated.sqnr_db >= sqnr + _DROP_DB]
        if recovered:
            continue
        found.add(layer.op_name)
        yield Finding(
            id="SE2",
            title=f"The error enters here: SQNR falls by {drop:.1f} dB to {sqnr:.1f} dB",
            severity="W",
            op=layer.op_name,
            advice="Repair this op first; the rows behind it inherit its error.",
            cost="C",
            evidence=(
                Evidence("SQNR of the output", sqnr, "dB", "20"),
                Evidence("drop against its worst input", drop, "dB", "6"),
                *_own_error(layer),
                *(
                    Evidence(f"SQNR of {o.name}", o.accumulated.sqnr_db, "dB")
                    for o in outputs
                    if o.accumulated is not None
                ),
            ),
            source=layer.source,
            patch=Patch(
                "int16",
                layer.op_name,
                f"model.get_submodule({layer.op_name!r}).qconfig = default_calib_16bit_fake_quant_qconfig   # "
                f"before prepare",
                {"dtype": "qint16"},
            ),
        )


def _drop_db(context: Context, layer: LayerRecord) -> float | None:
    """How far the op's SQNR lies below that of its worst input; model inputs are exact."""
    if layer.accumulated is None or layer.status != "compared":
        return None
    worst = math.inf
    for name in layer.inputs:
        source = context.by_key.get(name)
        if source is None or source.accumulated is None:
            return None
        worst = min(worst, source.accumulated.sqnr_db)
    return worst - layer.accumulated.sqnr_db


def _outputs_behind(context: Context, layer: LayerRecord) -> list[LayerRecord]:
    """The model's outputs that this op call reaches."""
    seen: set[str] = set()
    open_keys = [call_key(layer)]
    outputs = {}
    while open_keys:
        key = open_keys.pop()
        for reader in context.consumers.get(key, ()):
            if reader.is_output:
                outputs[reader.name] = reader
            elif call_key(reader) not in seen:
                seen.add(call_key(reader))
                open_keys.append(call_key(reader))
    return list(outputs.values())


def _own_error(layer: LayerRecord) -> tuple[Evidence, ...]:
    if layer.injected is None:
        return ()
    return (Evidence("SQNR with the test's own input (error of this op alone)", layer.injected.sqnr_db, "dB"),)
