"""What the rules read: one comparison, indexed, and the state of the prepared model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from profiler.records import Comparison, LayerRecord, StateRecord

# Ops that hand on their input's scale: what is wrong with their output was wrong before them.
SCALE_KEEPING = frozenset({"relu", "shape", "max_pool", "dropout"})
_FLOAT32_DB = 150.0  # about what one float32 rounding leaves; more is said by huge constants, not by the values
WEIGHTED = frozenset({"conv", "conv1d", "linear"})


def call_key(layer: LayerRecord) -> str:
    """Name of an op call without table suffixes, as `LayerRecord.inputs` uses it."""
    return layer.op_name if layer.call == 0 else f"{layer.op_name}({layer.call})"


def op_of(call_name: str) -> str:
    """Op name of an op call: `conv` of `conv(1)`."""
    return call_name.partition("(")[0]


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

    @cached_property
    def modules(self) -> frozenset[str]:
        """Names of the ops that are modules of the user's model; the others are function calls."""
        rows = self.comparison.reference.called
        return frozenset(row.name for row in rows if "FunctionOp[" not in row.type_name)

    def is_function(self, layer: LayerRecord) -> bool:
        """Whether the op is a function call, which has no qconfig attribute."""
        if not self.modules:
            return layer.reference_type.rpartition(".")[0] == "torch"
        return layer.op_name not in self.modules

    def consumers_of(self, layer: LayerRecord) -> tuple[LayerRecord, ...]:
        """Readers of one op call."""
        return self.consumers.get(call_key(layer), ())

    def calls_of(self, op_name: str) -> tuple[LayerRecord, ...]:
        """All calls of one op."""
        return tuple(x for x in self.layers if x.op_name == op_name)

    def compared_inputs(self, layer: LayerRecord) -> tuple[LayerRecord, ...]:
        """The nearest op calls with an error that tells something; none of them for a model input.

        An attention mask of -1e38 outweighs every error in its sum: such a tensor is looked through.
        """
        return self._upstream(layer, _has_telling_error)

    def sources(self, layer: LayerRecord) -> tuple[LayerRecord, ...]:
        """The op calls whose rounding the inputs carry; ops that hand on a scale or run in float are looked through."""
        return self._upstream(layer, lambda x: x.qparams is not None and x.kind not in SCALE_KEEPING)

    def behind(self, layer: LayerRecord) -> tuple[LayerRecord, ...]:
        """All op calls and outputs that an op call reaches."""
        found: dict[str, LayerRecord] = {}
        open_layers = [layer]
        while open_layers:
            for reader in self.consumers_of(open_layers.pop()):
                if reader.name not in found:
                    found[reader.name] = reader
                    open_layers.append(reader)
        return tuple(found.values())

    def _upstream(self, layer: LayerRecord, is_wanted: Callable[[LayerRecord], bool]) -> tuple[LayerRecord, ...]:
        found: dict[str, LayerRecord] = {}
        seen: set[str] = set()
        names = list(layer.inputs)
        while names:
            name = names.pop(0)
            source = self.by_key.get(name)
            if source is None or name in seen:
                continue
            seen.add(name)
            if is_wanted(source):
                found[name] = source
            else:
                names.extend(source.inputs)
        return tuple(found.values())


def _has_telling_error(layer: LayerRecord) -> bool:
    if layer.status != "compared" or layer.accumulated is None:
        return False
    sqnr_db = layer.accumulated.sqnr_db
    return sqnr_db < _FLOAT32_DB or math.isinf(sqnr_db)
