"""What the rules read: one comparison, indexed, and the state of the prepared model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from profiler.records import Comparison, LayerRecord, StateRecord

# Ops that hand on their input's scale: what is wrong with their output was wrong before them.
SCALE_KEEPING = frozenset({"relu", "shape", "max_pool", "dropout"})
WEIGHTED = frozenset({"conv", "conv1d", "linear"})


def call_key(layer: LayerRecord) -> str:
    """Name of an op call without table suffixes, as `LayerRecord.inputs` uses it."""
    return layer.op_name if layer.call == 0 else f"{layer.op_name}({layer.call})"


@dataclass(frozen=True)
class Context:
    """A comparison of float against fake quant (or of two later stages), and the model's state if it was prepared."""

    comparison: Comparison
    state: StateRecord | None = None

    @cached_property
    def layers(self) -> tuple[LayerRecord, ...]:
        """Op calls that ran, in forward order, without the rows of the model's outputs."""
        return tuple(x for x in self.comparison.layers if x.status != "uncalled" and not x.is_output)

    @cached_property
    def by_key(self) -> dict[str, LayerRecord]:
        """Op calls by name."""
        return {call_key(layer): layer for layer in self.layers}

    @cached_property
    def consumers(self) -> dict[str, tuple[LayerRecord, ...]]:
        """For each op call the calls that read it."""
        found: dict[str, list[LayerRecord]] = {}
        for layer in self.comparison.layers:
            if layer.status == "fused":
                continue
            for name in layer.inputs:
                found.setdefault(name, []).append(layer)
        return {name: tuple(layers) for name, layers in found.items()}

    @cached_property
    def outputs(self) -> tuple[LayerRecord, ...]:
        """The model's output tensors."""
        return tuple(x for x in self.comparison.layers if x.is_output)

    def consumers_of(self, layer: LayerRecord) -> tuple[LayerRecord, ...]:
        """Readers of one op call."""
        return self.consumers.get(call_key(layer), ())

    def calls_of(self, op_name: str) -> tuple[LayerRecord, ...]:
        """All calls of one op."""
        return tuple(x for x in self.layers if x.op_name == op_name)
