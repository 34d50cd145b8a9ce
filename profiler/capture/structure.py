"""Facts about a stage's structure: called counts, qconfig tables, unfused groups, weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from profiler.capture.stage import OpFacts, Stage
from profiler.metrics.difference import PairSums
from profiler.metrics.distribution import TensorSums
from profiler.quant.affine import dequantize, qinfo
from profiler.quant.checking import called, qconfigs
from profiler.quant.checking.fusable import fusable_groups
from profiler.quant.naming import op_name
from profiler.quant.ops.fold import fold_batch_norm
from profiler.quant.ops.gemm import FakeQuantGemm, Gemm, IntegerGemm
from profiler.records import (
    CalledCount,
    QConfigCheck,
    QConfigMessage,
    QConfigRow,
    QuantParams,
    TensorRecord,
    TensorStats,
    UnfusedGroup,
    WeightQConfigRow,
    WeightRecord,
)

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def called_counts(stage: Stage) -> tuple[CalledCount, ...]:
    """How often each op module ran in one forward; one object under two names counts on the first."""
    rows = called.called_counts(stage.model, stage.called, stage.extra_leaves)
    return tuple(CalledCount(row.name, row.type_name, row.count, row.alias_of) for row in rows)


def tensor_records(stage: Stage) -> tuple[TensorRecord, ...]:
    """Rows of the statistic table: inputs, outputs, weight and bias of each op call, in forward order."""
    rows: list[TensorRecord] = []
    for index, (name, facts) in enumerate(stage.facts.items()):
        label = f"{name}(I)" if facts.is_pass_through else name
        label = f"{label}[{facts.method}]" if facts.method else label
        for i, tensor in enumerate(facts.inputs):
            sums = stage.input_sums(name, i)
            attr = "input" if len(facts.inputs) == 1 else f"input-{i}"
            if sums is not None:
                row = (tensor.shape, tensor.dtype, tensor.scale, tensor.ch_axis)
                rows.append(TensorRecord(index, label, facts.type_name, attr, *row, _stats(sums, tensor.scale)))
        out = facts.outputs[0]
        row = (out.shape, out.dtype, out.scale, out.ch_axis)
        rows.append(TensorRecord(index, label, facts.type_name, "output", *row, _stats(stage.outputs[name], out.scale)))
        if facts.call == 0:
            rows.extend(_parameter_records(index, label, facts))
    return tuple(rows)


@torch.no_grad()
def weight_records(reference: nn.Module, test: nn.Module) -> tuple[WeightRecord, ...]:
    """Each weight of the test model against the reference's; a batch norm that the test fused is folded first."""
    rows = []
    modules = dict(reference.named_modules())
    for name, module in test.named_modules():
        if not isinstance(module, (FakeQuantGemm, IntegerGemm)):
            continue
        expected = _reference_weight(modules, name, module)
        actual, scale = _real_weight(module)
        if expected is None or expected.shape != actual.shape:
            continue
        sums, axis_scale = PairSums(), scale.reshape(-1, *[1] * (actual.dim() - 1))
        sums.update(reference=expected, test=actual)
        stats = sums.stats(None)
        apart = module.rows((actual - expected).abs())
        in_scales = float((apart / axis_scale).max()) if actual.numel() else None
        rows.append(
            WeightRecord(
                f"{op_name(name)}.weight",
                stats.cosine,
                stats.sqnr_db,
                stats.atol,
                in_scales,
                float(expected.abs().max()),
            )
        )
    return tuple(rows)


def weight_params(module: nn.Module | None) -> QuantParams | None:
    """How a weighted op's weight is quantized."""
    if isinstance(module, FakeQuantGemm):
        fake_quant = module.weight_fake_quant
        info = fake_quant.info
        scale = tuple(float(s) for s in fake_quant.scale)
        return QuantParams(
            info.name, scale, fake_quant.ch_axis, info.quant_min, info.quant_max, fake_quant.is_calibrated
        )
    if isinstance(module, IntegerGemm):
        info = qinfo(module.weight_dtype)
        axis = module.weight_axis()
        scales = module.weight_scale if axis >= 0 else module.weight_scale[:1]
        return QuantParams(info.name, tuple(float(s) for s in scales), axis, info.quant_min, info.quant_max)
    return None


def check_qconfig_tables(stage: Stage) -> QConfigCheck:
    """The three tables of qconfig_info.txt, from what really ran."""
    calls = list(stage.facts.values())
    outputs = [qconfigs.output_row(facts) for facts in calls]
    first = [facts for facts in calls if facts.call == 0]
    weights = [row for facts in first for row in qconfigs.weight_rows(facts.name, facts.type_name, facts.module)]
    messages = qconfigs.message_rows(calls, qconfigs.effects_of(stage.model))
    return QConfigCheck(
        tuple(QConfigRow(r.name, r.type_name, r.input_dtypes, r.out_dtype, r.ch_axis, r.observer) for r in outputs),
        tuple(WeightQConfigRow(r.name, r.type_name, r.weight_dtype, r.ch_axis, r.observer) for r in weights),
        tuple(QConfigMessage(r.name, r.type_name, r.message) for r in messages),
    )


def unfused_groups(stage: Stage) -> tuple[UnfusedGroup, ...]:
    """Weighted ops followed by a batch norm or ReLU that could be part of them, and why they are not."""
    return tuple(UnfusedGroup(g.names, g.types, g.cause) for g in fusable_groups(stage.facts))


def _stats(sums: TensorSums, scale: tuple[float, ...]) -> TensorStats:
    return sums.record(scale[0] if len(scale) == 1 else None)


def _parameter_records(index: int, label: str, facts: OpFacts) -> Iterator[TensorRecord]:
    for attr in ("weight", "bias"):
        tensor = getattr(facts.module, attr, None)
        if not isinstance(tensor, Tensor):
            continue
        params = weight_params(facts.module) if attr == "weight" else None
        values = _real_weight(facts.module)[0] if attr == "weight" and isinstance(facts.module, IntegerGemm) else tensor
        sums = TensorSums()
        sums.update(values)
        dtype = params.dtype if params is not None else str(tensor.dtype)
        scale, axis = (params.scale, params.ch_axis) if params is not None else ((), -1)
        yield TensorRecord(index, label, facts.type_name, attr, tuple(tensor.shape), dtype, scale, axis, sums.record())


def _real_weight(module: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight in real values as the stage computes with it, and its scale."""
    if isinstance(module, IntegerGemm):
        return module.from_rows(dequantize(module.rows(module.weight), module.weight_scale, 0)), module.weight_scale
    assert isinstance(module, FakeQuantGemm)
    weight = module.weight_and_bias()[0].detach()
    was_on = module.weight_fake_quant.is_fake_quant_on
    return (module.weight_fake_quant.quantize_weight(weight) if was_on else weight), module.weight_fake_quant.scale


def _reference_weight(modules: dict[str, nn.Module], name: str, test: Gemm) -> Tensor | None:
    """Float weight of the op in the reference model, with the batch norm of its group folded in."""
    own = modules.get(name)
    if isinstance(own, FakeQuantGemm):
        return _real_weight(own)[0].detach()
    group = [modules[n] for n in test.fused_names if n in modules] or ([own] if own is not None else [])
    weight = getattr(group[0], "weight", None) if group else None
    if not isinstance(weight, Tensor) or isinstance(group[0], _NORMS):
        return None
    norm = next((m for m in group[1:] if isinstance(m, _NORMS)), None)
    rows = test.rows(weight.detach())
    return test.from_rows(rows if norm is None else fold_batch_norm(rows, None, norm)[0].detach())
