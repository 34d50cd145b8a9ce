"""How ops and weights are really quantized, and what about it deserves a look: the tables of qconfig_info.txt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from profiler.quant.checking.facts import OpFacts, cast_of, describe_observer
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import QuantOp
from profiler.quant.naming import join
from profiler.quant.ops.gemm import FakeQuantGemm, IntegerGemm
from profiler.quant.ops.registry import Family
from profiler.quant.qconfig import QConfig
from profiler.quant.states import named_fake_quants
from profiler.quant.swap import EFFECTS_ATTRIBUTE, QuantEffect

WEIGHT = "weight_fake_quant"
NO_QCONFIG, NO_ACTIVATION = "qconfig = None", "activation = None"


@dataclass(frozen=True)
class OutputRow:
    """How one op call's output is quantized; `input_dtypes` holds one entry per input tensor.

    `ch_axis` is the axis of the scales as text, -1 for one scale, or why there is none of its own.
    """

    name: str
    type_name: str
    input_dtypes: tuple[str, ...]
    out_dtype: str
    ch_axis: str
    observer: str


@dataclass(frozen=True)
class WeightRow:
    """How one weight is quantized."""

    name: str
    type_name: str
    weight_dtype: str
    ch_axis: int
    observer: str


@dataclass(frozen=True)
class MessageRow:
    """Something about an op's qconfig that deserves a look."""

    name: str
    type_name: str
    message: str


def output_row(facts: OpFacts) -> OutputRow:
    """The row of one op call."""
    dtype, axis = _output_dtype(facts), str(facts.outputs[0].ch_axis)
    if facts.spec is not None and facts.spec.family is Family.SCALE_KEEPING:
        axis = NO_QCONFIG
    elif dtype == "None":
        axis = NO_ACTIVATION
    elif _is_float(facts) and _has_no_qconfig(facts.module):
        axis = NO_QCONFIG
    inputs = tuple(t.dtype for t in facts.inputs)
    return OutputRow(facts.name, facts.type_name, inputs, dtype, axis, facts.observer)


def weight_rows(name: str, type_name: str, module: nn.Module | None) -> Iterator[WeightRow]:
    """A row for each weight of an op; the weights inside of an op (LSTM) have longer names."""
    if isinstance(module, IntegerGemm):
        yield WeightRow(name, type_name, module.weight_dtype, module.weight_axis(), "")
    for path, fake_quant in [] if module is None else named_fake_quants(module):
        owner, _, last = path.rpartition(".")
        if last == WEIGHT:
            axis = fake_quant.ch_axis
            yield WeightRow(join(name, owner) if owner else name, type_name, fake_quant.dtype, axis,
                            describe_observer(fake_quant))  # fmt: skip


def message_rows(calls: Iterable[OpFacts], effects: Mapping[str, QuantEffect]) -> Iterator[MessageRow]:
    """What deserves a look, in forward order; `effects` says by op name what was asked for."""
    for facts in calls:
        for text in (*_messages(facts), *_difference(facts, effects.get(facts.op_name))):
            yield MessageRow(facts.name, facts.type_name, text)


def messages_of_module(name: str, module: nn.Module, effect: QuantEffect | None) -> Iterator[MessageRow]:
    """What deserves a look about a module that was not run."""
    type_name = f"{type(module).__module__}.{module._get_name()}"  # type: ignore[no-untyped-call]
    fake_quant = getattr(module, "activation_post_process", None)
    texts = [_NO_OUTPUT] if isinstance(module, FakeQuantGemm) and fake_quant is None else []
    if isinstance(fake_quant, FakeQuantize):
        texts += _fixed(fake_quant)
        if effect is not None and effect.requested.startswith("qint") and effect.requested != fake_quant.dtype:
            texts.append(_differs(fake_quant.dtype, effect))
    texts += _wide_weights(module)
    yield from (MessageRow(name, type_name, text) for text in texts)


def effects_of(model: nn.Module) -> dict[str, QuantEffect]:
    """What prepare was asked for and did, by op name."""
    return {effect.op: effect for effect in getattr(model, EFFECTS_ATTRIBUTE, ())}


_NO_OUTPUT = "activation is None (output layer?)"


def _messages(facts: OpFacts) -> Iterator[str]:
    dtype = _output_dtype(facts)
    if dtype == "None":
        yield _NO_OUTPUT
    if _is_float(facts) and _is_weighted(facts) and _has_no_qconfig(facts.module):
        yield "qconfig is None: runs in float"
    if facts.outputs[0].scale and facts.output_fake_quant is not None:
        yield from _fixed(facts.output_fake_quant)
    yield from _wide_weights(facts.module)
    dtypes = {t.dtype for t in facts.inputs if t.dtype.startswith("qint")}
    if dtype.startswith("qint") and dtypes and dtypes != {dtype} and not facts.is_stub:
        yield f"input dtype {', '.join(sorted(dtypes))} is not same with out dtype {dtype}"


def _difference(facts: OpFacts, effect: QuantEffect | None) -> Iterator[str]:
    """Where an op that got quantized values gives another dtype than was asked for."""
    actual = facts.outputs[0].dtype
    spec = facts.spec
    keeps = spec is not None and (spec.family in (Family.SCALE_KEEPING, Family.INDEX) or spec.name == "dequant_stub")
    if effect is None or keeps or facts.call > 0 or not effect.requested.startswith("qint"):
        return
    has_quantized = any(t.dtype.startswith("qint") for t in facts.inputs)
    is_other = actual.startswith("qint") or (has_quantized and actual.startswith("torch.float"))
    if is_other and actual != effect.requested:
        yield _differs(actual, effect)


def _differs(actual: str, effect: QuantEffect) -> str:
    reason = f": {effect.reason}" if effect.reason else ""
    return f"actual dtype {actual} differs from configured {effect.requested}{reason}"


def _fixed(fake_quant: FakeQuantize) -> list[str]:
    if not fake_quant.activation_post_process.is_fixed:
        return []
    return [f"Fixed scale {float(fake_quant.scale.detach().reshape(-1)[0]):.7g}"]


def _wide_weights(module: nn.Module | None) -> list[str]:
    dtypes = dict.fromkeys(row.weight_dtype for row in weight_rows("", "", module))
    return [f"{dtype} weight" for dtype in dtypes if dtype != "qint8"]


def _output_dtype(facts: OpFacts) -> str:
    """Dtype of the output as the table prints it; "None" where a qconfig left it unquantized (high precision)."""
    if not _is_float(facts):
        return facts.outputs[0].dtype
    if cast_of(facts.module) is not None:
        return str(cast_of(facts.module).dtype)  # type: ignore[union-attr]
    return "None" if _has_high_precision(facts) else facts.outputs[0].dtype


def _is_float(facts: OpFacts) -> bool:
    return facts.outputs[0].dtype.startswith("torch.float")


def _is_weighted(facts: OpFacts) -> bool:
    return facts.spec is not None and facts.spec.family is Family.GEMM


def _has_high_precision(facts: OpFacts) -> bool:
    """Whether a quantized op gives a float output because its qconfig has no activation."""
    if isinstance(facts.module, (FakeQuantGemm, IntegerGemm)):
        return True
    qconfig = None if facts.module is None else facts.module.__dict__.get("qconfig")
    is_quantized = any(t.dtype.startswith("qint") for t in facts.inputs) and isinstance(facts.module, QuantOp)
    keeps = facts.is_stub or facts.spec is None or facts.spec.family in (Family.SCALE_KEEPING, Family.INDEX)
    return isinstance(qconfig, QConfig) and qconfig.activation is None and is_quantized and not keeps


def _has_no_qconfig(module: nn.Module | None) -> bool:
    return module is not None and "qconfig" in module.__dict__ and module.__dict__["qconfig"] is None
