"""Which op calls of a converted model run on integers, and why the others do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from benchmarks._loaders import Batch
from profiler.quant.deploy.layers import LayerFact, collect_layers
from profiler.quant.swap import QuantEffect

# these neither compute nor could be quantized
_NO_OPS = ("quant_stub", "dequant_stub", "dropout", "identity")
_FLOATS = ("torch.float", "torch.double", "torch.half", "torch.bfloat")


@dataclass(frozen=True)
class OpCounts:
    """Op calls of one forward that compute on numbers.

    Attributes:
        quantized: those with a quantized operand or result.
        left: those in float, by the reason.
    """

    quantized: int
    left: dict[str, list[str]]

    @property
    def total(self) -> int:
        """All of them."""
        return self.quantized + sum(len(names) for names in self.left.values())


def count_ops(quantized: nn.Module, batch: Batch, effects: Sequence[QuantEffect]) -> OpCounts:
    """Op calls of a converted model in one forward on `batch`; `effects` give the reasons of those in float."""
    reasons = {effect.op: effect.reason for effect in effects if effect.reason}
    count = 0
    left: dict[str, list[str]] = {}
    for layer in collect_layers(quantized, batch):
        if layer.operator in _NO_OPS or layer.kind.endswith(".Identity"):
            continue
        if layer.is_quantized:
            count += 1
        elif _is_float(layer):
            left.setdefault(_reason(layer.op_name, reasons), []).append(layer.name)
    return OpCounts(count, left)


def _is_float(layer: LayerFact) -> bool:
    return all(any(t.dtype.startswith(_FLOATS) for t in facts) for facts in (layer.inputs, layer.outputs))


def _reason(op_name: str, reasons: dict[str, str]) -> str:
    """The reason of the op, or of the nearest module around it that has one, without the op's own name in it."""
    parts = op_name.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in reasons:
            return reasons[name].replace(name, "it")
    return "it is in a forward that stays in float" if reasons else "its operands are float"
