"""From sums to records: the comparison of two stages as plain values."""

from __future__ import annotations

from collections import Counter

from torch import nn

from profiler.capture.lockstep import OpPair, PairRun
from profiler.capture.stage import OpFacts, Stage
from profiler.capture.structure import (
    called_counts,
    check_qconfig_tables,
    tensor_records,
    unfused_groups,
    weight_params,
    weight_records,
)
from profiler.metrics.difference import PairSums
from profiler.quant.swap import is_prepared
from profiler.records import Comparison, Coverage, LayerRecord, Mode, ModelRecord, QuantError, TensorStats


def comparison_record(run: PairRun, mode: Mode, notes: tuple[str, ...] = ()) -> Comparison:
    """All facts of a pair of stages.

    Args:
        run: the sums.
        mode: the original's name of the pair.
        notes: sentences for the report.
    """
    layers = [_layer(run, index, name, pair) for index, (name, pair) in enumerate(run.pairs.items())]
    outputs = _output_layers(run, len(layers))
    qat_form = run.test if is_prepared(run.test.model) else run.reference
    return Comparison(
        mode=mode,
        reference=_model_record(run.reference),
        test=_model_record(run.test),
        layers=tuple([*layers, *_uncalled(run, len(layers) + len(outputs)), *outputs]),
        outputs=tuple(layer.name for layer in outputs),
        weights=weight_records(run.reference.model, run.test.model),
        unfused=unfused_groups(run.test) if mode != "QvsQ" else (),
        qconfig=check_qconfig_tables(qat_form),
        coverage=_coverage(run),
        notes=notes,
    )


def _model_record(stage: Stage) -> ModelRecord:
    return ModelRecord(
        stage=stage.name,
        title=type(stage.model).__name__,
        tensors=tensor_records(stage),
        called=called_counts(stage),
        printout=str(stage.model),
    )


def _layer(run: PairRun, index: int, name: str, pair: OpPair) -> LayerRecord:
    facts = run.test.facts[name]
    reference = run.reference.facts.get(pair.reference_names[-1]) if pair.reference_names else None
    scale = facts.qparams.scale[0] if facts.qparams is not None and len(facts.qparams.scale) == 1 else None
    compared = pair.status == "compared"
    return LayerRecord(
        index=index,
        name=_label(facts, reference),
        op_name=facts.op_name,
        call=facts.call,
        reference_type=reference.type_name if reference is not None else "",
        test_type=facts.type_name,
        status=pair.status,
        reason=pair.reason or pair.injected_reason,
        source=reference.source if reference is not None else "",
        kind=facts.spec.name if facts.spec is not None else "",
        fused_names=facts.fused_names,
        inputs=_real_producers(run.test, facts),
        accumulated=pair.accumulated.stats(scale) if compared else None,
        injected=pair.injected.stats(scale) if compared and pair.injected.num_values else None,
        quant_error=_quant_error(run, pair, scale),
        qparams=facts.qparams,
        weight_qparams=weight_params(facts.module),
        reference_input=_input_stats(run.reference, pair.reference_names[:1]) or _input_stats(run.test, (name,)),
        reference_output=_output_stats(run.reference, pair.reference_names[-1:], scale) if compared else None,
        test_output=_output_stats(run.test, (name,), scale),
        num_params=_num_params(facts.module),
    )


def _label(facts: OpFacts, reference: OpFacts | None) -> str:
    """Row name with the suffixes that users know: (I), (I vs I), [add]."""
    label = facts.name
    if facts.is_pass_through:
        both = reference is not None and reference.is_pass_through
        label += "(I vs I)" if both else "(I)"
    return f"{label}[{facts.method}]" if facts.method else label


def _quant_error(run: PairRun, pair: OpPair, scale: float | None) -> QuantError | None:
    if pair.status != "compared" or scale is None or pair.quant_error.count == 0:
        return None
    name = pair.reference_names[-1] if pair.reference_names else ""
    sums = run.reference.outputs.get(name)
    std = sums.moments.var**0.5 if sums is not None else _std_of(pair.accumulated)
    return pair.quant_error.record(scale, std)


def _std_of(sums: PairSums) -> float:
    """Root mean square of the reference: its std where no statistics of it were kept (stub inputs)."""
    return float((sums.reference_squared / max(sums.num_values, 1)) ** 0.5)


def _input_stats(stage: Stage, names: tuple[str, ...]) -> TensorStats | None:
    if not names or names[0] not in stage.facts or not stage.facts[names[0]].inputs:
        return None
    sums = stage.input_sums(names[0], 0)
    return None if sums is None else sums.record()


def _output_stats(stage: Stage, names: tuple[str, ...], scale: float | None) -> TensorStats | None:
    sums = stage.outputs.get(names[0]) if names else None
    return None if sums is None else sums.record(scale)


def _real_producers(stage: Stage, facts: OpFacts) -> tuple[str, ...]:
    """Names of the op calls that made the inputs; Identity is looked through."""
    names = []
    for producer in facts.producers:
        while producer in stage.facts and stage.facts[producer].is_pass_through and stage.facts[producer].producers:
            producer = stage.facts[producer].producers[0]
        if producer is not None and producer not in names:
            names.append(producer)
    return tuple(names)


def _num_params(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def _uncalled(run: PairRun, start: int) -> list[LayerRecord]:
    """Modules of the test model that never ran."""
    rows: list[LayerRecord] = []
    for row in called_counts(run.test):
        if row.count == 0 and not row.alias_of:
            reason = "called 0 times in the batches that were compared"
            rows.append(LayerRecord(start + len(rows), row.name, row.name, 0, "", row.type_name, "uncalled", reason))
    return rows


def _output_layers(run: PairRun, start: int) -> list[LayerRecord]:
    """One row per output tensor of the whole model."""
    rows = []
    for i, (sums, producer) in enumerate(zip(run.outputs, run.output_producers, strict=True)):
        name = "model output" if len(run.outputs) == 1 else f"model output-{i}"
        rows.append(
            LayerRecord(
                index=start + i,
                name=name,
                op_name=name,
                call=0,
                reference_type="",
                test_type="model output",
                status="compared" if sums.num_values else "unsupported",
                reason="" if sums.num_values else "not a float tensor, or of another shape",
                kind="model_output",
                inputs=(producer,) if producer else (),
                accumulated=sums.stats(None) if sums.num_values else None,
                is_output=True,
            )
        )
    return rows


def _coverage(run: PairRun) -> Coverage:
    """Counts of op calls; an Identity that a fused module left behind computes nothing and is none."""
    pairs = [pair for name, pair in run.pairs.items() if not run.test.facts[name].is_pass_through]
    reasons = Counter(pair.reason for pair in pairs if pair.status != "compared")
    compared = sum(pair.status == "compared" for pair in pairs)
    return Coverage(executed=len(pairs), compared=compared, reasons=dict(reasons))
