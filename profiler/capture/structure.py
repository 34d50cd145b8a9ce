"""Facts about a stage's structure: called counts, qconfig tables, unfused groups, weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from profiler.capture.stage import OpFacts, Stage, describe_observer
from profiler.metrics.difference import PairSums
from profiler.metrics.distribution import TensorSums
from profiler.quant.affine import dequantize, qinfo
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import is_leaf, type_name
from profiler.quant.naming import op_name
from profiler.quant.observers import ObserverBase
from profiler.quant.ops.fold import fold_batch_norm
from profiler.quant.ops.gemm import FakeQuantGemm, Gemm, IntegerGemm
from profiler.quant.ops.registry import Family
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
_WEIGHTED = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


def called_counts(stage: Stage) -> tuple[CalledCount, ...]:
    """How often each op module ran in one forward; one object under two names counts on the first."""
    rows = []
    first: dict[int, str] = {}
    for name, module in stage.model.named_modules(remove_duplicate=False):
        if isinstance(module, (FakeQuantize, ObserverBase)) or not (is_leaf(module) or name in stage.extra_leaves):
            continue
        if _is_inside_op(stage, name):
            continue
        alias = first.setdefault(id(module), name)
        count = stage.called.get(name, 0) if alias == name else 0
        rows.append(CalledCount(op_name(name), type_name(module), count, "" if alias == name else op_name(alias)))
    return tuple(rows)


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
    outputs: list[QConfigRow] = []
    weights: list[WeightQConfigRow] = []
    messages: list[QConfigMessage] = []
    for name, facts in stage.facts.items():
        out = facts.outputs[0]
        keeps = facts.spec is not None and facts.spec.family is Family.SCALE_KEEPING
        dtype = "None" if out.dtype.startswith("torch.float") and _is_weighted(facts) else out.dtype
        axis = "qconfig = None" if keeps else ("activation = None" if dtype == "None" else str(out.ch_axis))
        fake_quant = getattr(facts.module, "activation_post_process", None)
        observer = describe_observer(fake_quant) if isinstance(fake_quant, FakeQuantize) else ""
        inputs = tuple(t.dtype for t in facts.inputs)
        outputs.append(QConfigRow(name, facts.type_name, inputs, dtype, axis, observer))
        params = weight_params(facts.module)
        if params is not None and facts.call == 0:
            weights.append(WeightQConfigRow(name, facts.type_name, params.dtype, params.ch_axis))
        messages.extend(QConfigMessage(name, facts.type_name, text) for text in _messages(facts, dtype))
    return QConfigCheck(tuple(outputs), tuple(weights), tuple(messages))


def unfused_groups(stage: Stage) -> tuple[UnfusedGroup, ...]:
    """Weighted ops followed by a batch norm or ReLU that could be part of them, and why they are not."""
    consumers = stage.consumers()
    groups, taken = [], set()
    for name, facts in stage.facts.items():
        if not isinstance(facts.module, (Gemm, *_WEIGHTED)) or name in taken:
            continue
        if isinstance(facts.module, Gemm) and (
            facts.module.epilogue.activation or "BatchNorm" in facts.module.base_name
        ):
            continue
        chain = [name, *_following(stage, consumers, name)]
        if len(chain) > 1:
            taken.update(chain)
            types = tuple(stage.facts[n].type_name for n in chain)
            groups.append(UnfusedGroup(tuple(chain), types, _cause(stage, consumers, chain)))
    return tuple(groups)


def _following(stage: Stage, consumers: dict[str, list[str]], name: str) -> list[str]:
    """The batch norm and ReLU behind a weighted op, by any of its consumers."""
    chain: list[str] = []
    for wanted in (_is_norm, _is_relu):
        current = chain[-1] if chain else name
        found = next((n for n in _readers(stage, consumers, current) if wanted(stage.facts[n])), None)
        if found is not None:
            chain.append(found)
    return chain


def _readers(stage: Stage, consumers: dict[str, list[str]], name: str) -> Iterator[str]:
    for reader in consumers.get(name, []):
        if isinstance(stage.facts[reader].module, nn.Identity):
            yield from _readers(stage, consumers, reader)
        else:
            yield reader


def _cause(stage: Stage, consumers: dict[str, list[str]], chain: list[str]) -> str:
    """Why a group is not one op."""
    shared = [n for n in chain if f"{stage.facts[n].op_name}(1)" in stage.facts]
    if shared:
        return f"{shared[0]} is shared: it is called more than once"
    for name in chain[:-1]:
        readers = list(_readers(stage, consumers, name))
        if len(readers) > 1:
            return (
                f"second consumer: the output of {name} is also read by "
                f"{', '.join(r for r in readers if r not in chain)}"
            )
    called_as_function = [n for n in chain[1:] if _is_function_call(stage.facts[n])]
    if called_as_function:
        return f"{called_as_function[0]} is called as a function: eager fusion needs a module"
    return "not listed for fusion"


def _is_function_call(facts: OpFacts) -> bool:
    """Whether the user's code calls a torch function here: plain, or through the module generated in its place."""
    return facts.module is None or facts.base_name.startswith("FunctionOp")


def _is_norm(facts: OpFacts) -> bool:
    module = facts.module
    return isinstance(module, _NORMS) or (isinstance(module, Gemm) and module.base_name.startswith("BatchNorm"))


def _is_relu(facts: OpFacts) -> bool:
    return facts.spec is not None and facts.spec.name in ("relu", "relu6")


def _is_weighted(facts: OpFacts) -> bool:
    return isinstance(facts.module, (FakeQuantGemm, IntegerGemm))


def _messages(facts: OpFacts, dtype: str) -> Iterator[str]:
    if dtype == "None":
        yield "activation is None (output layer?)"
    if facts.qparams is not None and facts.qparams.is_fixed:
        yield f"Fixed scale {facts.qparams.scale[0]:.7g}"
    params = weight_params(facts.module)
    if params is not None and params.dtype != "qint8":
        yield f"{params.dtype} weight"
    dtypes = {t.dtype for t in facts.inputs if t.dtype.startswith("qint")}
    if dtype.startswith("qint") and dtypes and dtypes != {dtype} and not facts.is_stub:
        yield f"input dtype {', '.join(sorted(dtypes))} is not same with out dtype {dtype}"


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


def _is_inside_op(stage: Stage, name: str) -> bool:
    while name:
        name = name.rpartition(".")[0]
        if name in stage.extra_leaves or is_leaf(stage.model.get_submodule(name)):
            return True
    return False
