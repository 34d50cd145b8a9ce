"""What one stage of the model did: facts of each op call, and sums over its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from profiler.capture.hooks import OpCall
from profiler.metrics.distribution import TensorSums
from profiler.quant.checking.facts import OpFacts as CallFacts
from profiler.quant.checking.facts import TensorFacts, consumers, describe_observer, spec_of_call, tensor_facts
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.qtensor import QTensor
from profiler.records import QuantParams

FLOAT_STAGE = "float"


@dataclass(frozen=True)
class OpFacts(CallFacts):
    """One op call, as seen in the first batch that had it, and how its output is quantized."""

    qparams: QuantParams | None


@dataclass
class Stage:
    """Facts and sums of one stage, by name of the op call, in forward order."""

    name: str
    model: nn.Module
    facts: dict[str, OpFacts] = field(default_factory=dict)
    outputs: dict[str, TensorSums] = field(default_factory=dict)
    inputs: dict[tuple[str, int], TensorSums] = field(default_factory=dict)
    called: dict[str, int] = field(default_factory=dict)
    extra_leaves: frozenset[str] = frozenset()

    def count_calls(self, called: Mapping[str, int], extra_leaves: frozenset[str]) -> None:
        """Take the module calls of one forward; of several forwards the largest number counts."""
        self.extra_leaves = extra_leaves
        for name, count in called.items():
            self.called[name] = max(self.called.get(name, 0), count)

    def add(self, call: OpCall) -> None:
        """Take one op call into the sums."""
        if call.name not in self.facts:
            facts = op_facts(call)
            self.facts[call.name] = in_float(facts) if self.name == FLOAT_STAGE else facts
            self.outputs[call.name] = TensorSums()
        for tensor in call.outputs:
            add_tensor(self.outputs[call.name], tensor)
        for i, (tensor, producer) in enumerate(zip(call.inputs, call.producers, strict=True)):
            if producer is None:
                add_tensor(self.inputs.setdefault((call.name, i), TensorSums()), tensor)

    def input_sums(self, name: str, index: int) -> TensorSums | None:
        """Sums of one input: its own where it comes from outside, else those of the op that made it."""
        own = self.inputs.get((name, index))
        producer = self.facts[name].producers[index]
        return own if own is not None or producer is None else self.outputs.get(producer)

    def consumers(self) -> dict[str, list[str]]:
        """For each op call the calls that read its output; pass-through ops (Identity) are looked through."""
        return consumers(self.facts)


def in_float(facts: OpFacts) -> OpFacts:
    """Facts of an op of the float stage: a prepared model with fake quant off carries scales, but rounds nothing."""
    inputs = tuple(_unscaled(tensor) for tensor in facts.inputs)
    outputs = tuple(_unscaled(tensor) for tensor in facts.outputs)
    return replace(facts, inputs=inputs, outputs=outputs, qparams=None)


def _unscaled(tensor: TensorFacts) -> TensorFacts:
    return TensorFacts(tensor.shape, "torch.float32", (), -1) if tensor.scale else tensor


def real_values(tensor: Tensor) -> Tensor:
    """A tensor's real values: codes are multiplied by their scale."""
    return tensor.dequantize() if isinstance(tensor, QTensor) else tensor


def add_tensor(sums: TensorSums, tensor: Tensor) -> None:
    """Add one live tensor; integer and bool tensors are counted by value too, sparse and complex ones are not."""
    if isinstance(tensor, QTensor):
        if tensor.holds_codes:
            sums.count_clipped(tensor.plain, tensor.info.quant_min, tensor.info.quant_max)
        sums.update(tensor.dequantize(), channel_axis(tensor))
    elif not tensor.is_complex() and tensor.layout is torch.strided:
        sums.update(tensor.as_subclass(Tensor), channel_axis(tensor))


def channel_axis(tensor: Tensor) -> int | None:
    """Axis of the features: 1 for images and matrices, the last for sequences."""
    return {2: 1, 3: 2, 4: 1, 5: 1}.get(tensor.dim())


def op_facts(call: OpCall) -> OpFacts:
    """Facts of one op call."""
    module = call.module
    spec = spec_of_call(module, call.op_name, call.method)
    return OpFacts(
        name=call.name,
        op_name=call.op_name,
        call=call.call,
        type_name=call.type_name,
        method=call.method,
        module=module,
        spec=spec,
        inputs=tuple(tensor_facts(t) for t in call.inputs),
        outputs=tuple(tensor_facts(t) for t in call.outputs),
        producers=call.producers,
        fused_names=tuple(getattr(module, "fused_names", ())),
        qparams=quant_params(module, call.outputs),
        source=call.source,
        is_pass_through=call.is_pass_through,
    )


def quant_params(module: nn.Module | None, outputs: list[Tensor]) -> QuantParams | None:
    """How the first output is quantized, or None where it is not."""
    tensor = next((t for t in outputs if isinstance(t, QTensor)), None)
    if tensor is None:
        return None
    info = tensor.info
    found = getattr(module, "activation_post_process", None)
    fake_quant = found if isinstance(found, FakeQuantize) else None
    return QuantParams(
        dtype=tensor.qdtype,
        scale=tuple(float(s) for s in tensor.scale.reshape(-1)),
        ch_axis=tensor.ch_axis,
        quant_min=info.quant_min,
        quant_max=info.quant_max,
        is_calibrated=fake_quant is None or fake_quant.is_calibrated,
        is_fixed=fake_quant is not None and fake_quant.activation_post_process.is_fixed,
        observer=describe_observer(fake_quant),
    )
