"""Builds an ONNX graph node by node: unique names, shared initializers, types that ONNX Runtime has kernels for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from profiler.errors import ConfigError

OPSET, IR_VERSION = 18, 9  # what ONNX Runtime 1.18 and newer run
_ELEM_TYPES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
}
_SMALL = (torch.int8, torch.int16, torch.uint8, torch.bool)
_INT8_KERNELS = frozenset({"Clip", "Pad", "Max", "Min", "ReduceMax", "ReduceMin", "MaxPool"})
# ONNX Runtime has kernels of these for int32, but not (or not in every version) for the smaller integers.
_WIDENED = frozenset(
    "Add Sub Mul Div Mod Abs Neg Max Min Clip Where Relu Less LessOrEqual Greater GreaterOrEqual Sign ReduceSum "
    "ReduceMax ReduceMin ReduceProd ArgMax ArgMin TopK Pad MatMul CumSum MaxPool".split()
)


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor of the graph.

    Attributes:
        name: its name; "" for a constant that no node has used yet.
        dtype: torch dtype.
        shape: sizes, or None where nobody needs them.
        constant: contents, if known while exporting.
        codes: "int8" or "int16" if a wider type carries integers of that range, else "".
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] | None = None
    constant: Tensor | None = None
    codes: str = ""


def constant(data: Any, dtype: torch.dtype | None = None) -> Value:
    """A value that is known while exporting."""
    tensor = data.detach() if isinstance(data, Tensor) else torch.tensor(data, dtype=dtype)
    tensor = tensor.to(device="cpu", dtype=dtype or tensor.dtype).clone(memory_format=torch.contiguous_format)
    return Value("", tensor.dtype, tuple(tensor.shape), tensor)


def elem_type(dtype: torch.dtype) -> int:
    """ONNX's number of a torch dtype.

    Raises:
        ConfigError: ONNX Runtime has no such type.
    """
    if dtype not in _ELEM_TYPES:
        raise ConfigError(f"dtype {dtype} cannot be exported; use one of {', '.join(map(str, _ELEM_TYPES))}")
    return _ELEM_TYPES[dtype]


@dataclass
class GraphBuilder:
    """An ONNX graph that grows.

    Attributes:
        scope: op that the next nodes belong to; it begins their names.
    """

    scope: str = ""
    nodes: list[Any] = field(default_factory=list)
    _names: Counter[str] = field(default_factory=Counter)
    _initializers: dict[Any, tuple[str, Tensor]] = field(default_factory=dict)
    _casts: dict[tuple[str, torch.dtype], Value] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """The name, or the name with a number where it is taken."""
        candidate = name
        while self._names[candidate]:
            candidate = f"{name}_{self._names[name]}"
            self._names[name] += 1
        self._names[candidate] += 1
        return candidate

    def node(self, op: str, *inputs: Value | None, dtype: torch.dtype | None = None, **attributes: Any) -> Value:
        """Append a node with one output.

        Args:
            op: ONNX operator.
            inputs: its inputs; None leaves an optional one out.
            dtype: of the output; the first input's by default.
            attributes: its attributes; None leaves one out.
        """
        first = next(value for value in inputs if value is not None)
        return self.nodes_of(op, *inputs, dtypes=[dtype or first.dtype], **attributes)[0]

    def nodes_of(
        self, op: str, *inputs: Value | None, dtypes: Sequence[torch.dtype], **attributes: Any
    ) -> tuple[Value, ...]:
        """Append a node with an output per dtype, in a wider integer type where ONNX Runtime has no other kernel."""
        wide = _widened(op, inputs)
        made = list(dtypes)
        if wide is not None:
            inputs = tuple(_cast_if_small(self, op, i, value, wide) for i, value in enumerate(inputs))
            is_comparison = op.startswith(("Less", "Greater"))
            made = [wide if d in _SMALL and not is_comparison else d for d in dtypes]
        outputs = self._append(op, inputs, made, attributes)
        return tuple(self.cast(v, d) for v, d in zip(outputs, dtypes, strict=True))

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """The value in another dtype; integers carried by it stay marked as such."""
        if value.dtype == dtype:
            return value
        codes = value.codes or _CODE_RANGES.get(value.dtype, "")
        if value.constant is not None:
            return replace(constant(value.constant, dtype), codes=codes)
        key = (value.name, dtype)
        if key not in self._casts:
            self._casts[key] = self._append("Cast", (value,), [dtype], {"to": elem_type(dtype)})[0]
            origin = replace(value, codes="")
            if codes:
                self._casts[(self._casts[key].name, value.dtype)] = origin
        return replace(self._casts[key], codes=codes, shape=value.shape)

    def identity(self, value: Value, name: str, shape: tuple[int, ...]) -> Value:
        """A second, chosen name for a value: what graph outputs need."""
        from onnx import helper

        self.nodes.append(helper.make_node("Identity", [self.name_of(value)], [name], name=self.unique(f"{name}/out")))
        return Value(name, value.dtype, shape)

    def name_of(self, value: Value) -> str:
        """Name of a value in the graph; a constant becomes an initializer."""
        if value.constant is None:
            return value.name
        tensor = value.constant
        key = (tensor.dtype, tuple(tensor.shape), _raw(tensor))
        if key not in self._initializers:
            self._initializers[key] = (self.unique(f"{self.scope}/constant" if self.scope else "constant"), tensor)
        return self._initializers[key][0]

    def constants(self) -> dict[str, Tensor]:
        """Contents of all initializers by name."""
        return dict(self._initializers.values())

    def initializers(self) -> list[Any]:
        """All constants that nodes use, as `onnx.TensorProto`."""
        return [_initializer(name, tensor) for name, tensor in self._initializers.values()]

    def drop_unused(self, outputs: set[str]) -> None:
        """Remove nodes and initializers that no output needs."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes[:] = kept[::-1]
        self._initializers = {key: item for key, item in self._initializers.items() if item[0] in needed}

    def model(self, inputs: Sequence[Value], outputs: Sequence[Value], doc: str = "") -> Any:
        """The finished `onnx.ModelProto`.

        Args:
            inputs: graph inputs.
            outputs: graph outputs; names of values of the graph.
            doc: description stored in the model.
        """
        from onnx import helper

        graph = helper.make_graph(
            self.nodes,
            "model",
            [_info(value) for value in inputs],
            [_info(value) for value in outputs],
            self.initializers(),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="quant-profiler", doc_string=doc
        )

    def _append(
        self, op: str, inputs: Sequence[Value | None], dtypes: list[torch.dtype], attributes: dict[str, Any]
    ) -> list[Value]:
        from onnx import helper

        names = ["" if value is None else self.name_of(value) for value in inputs]
        while names and not names[-1]:
            names.pop()
        name = self.unique(f"{self.scope}/{op}" if self.scope else op)
        outputs = [name if i == 0 else self.unique(f"{name}:{i}") for i in range(len(dtypes))]
        known = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, names, outputs, name=name, **known))
        return [Value(output, dtype) for output, dtype in zip(outputs, dtypes, strict=True)]


_CODE_RANGES = {torch.int8: "int8", torch.int16: "int16"}


def _widened(op: str, inputs: Sequence[Value | None]) -> torch.dtype | None:
    """The wider type that a node computes in, or None where ONNX Runtime has a kernel for the inputs' own."""
    if op not in _WIDENED:
        return None
    kinds = {v.dtype for v in inputs[op == "Where" :] if v is not None and v.dtype in _SMALL}
    if not kinds or (kinds <= {torch.int8, torch.uint8} and op in _INT8_KERNELS):
        return None
    return torch.float32 if op == "MaxPool" else torch.int32


def _cast_if_small(builder: GraphBuilder, op: str, index: int, value: Value | None, wide: torch.dtype) -> Value | None:
    if value is None or value.dtype not in _SMALL or (op == "Where" and index == 0):
        return value
    return builder.cast(value, wide)


def _raw(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""


def _initializer(name: str, tensor: Tensor) -> Any:
    from onnx import helper

    return helper.make_tensor(name, elem_type(tensor.dtype), list(tensor.shape), _raw(tensor), raw=True)


def _info(value: Value) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(value.name, elem_type(value.dtype), value.shape)
