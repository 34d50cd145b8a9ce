"""Activations as uint8 with zero point 128 in a loaded file: the same codes, by the kernels that x86 CPUs have."""

from __future__ import annotations

from typing import Any

_UINT8, _INT8 = 2, 3
_FLIP, _ZERO = "unsigned/flip", "unsigned/zero"


def with_unsigned_activations(proto: Any) -> Any:
    """A copy of a model whose int8 products read uint8 activations: code + 128, by zero point 128.

    The sums are the same integers, and so is every code that comes out; only saturation inside a kernel could differ,
    which `probe.unsigned_kernels_are_exact` finds out.

    Args:
        proto: `onnx.ModelProto` as `compile_model` writes it.
    """
    import onnx

    result = type(proto)()
    result.CopyFrom(proto)
    return _Rewriting(result, onnx.shape_inference.infer_shapes(proto)).run()


class _Rewriting:
    """One pass over a graph, in the order of its nodes.

    Args:
        proto: the model; changed in place.
        inferred: the same model with the types of its values.
    """

    def __init__(self, proto: Any, inferred: Any) -> None:
        self.proto, self.graph = proto, proto.graph
        values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.constants = {i.name: i for i in self.graph.initializer}
        self.unsigned: dict[str, str] = {}
        self.nodes: list[Any] = []

    def run(self) -> Any:
        from onnx import helper

        for node in list(self.graph.node):
            if node.op_type == "QLinearConv" and self._has_no_zero_points(node):
                self._qlinear_conv(node)
            elif node.op_type in ("ConvInteger", "MatMulInteger") and self._reads_signed(node):
                node.input[:] = [self._to_unsigned(node.input[0]), node.input[1], _ZERO]
                self.nodes.append(node)
            elif node.op_type == "Clip" and node.input[0] in self.unsigned:
                self._clip(node)
            else:
                self.nodes.append(node)
        self.graph.initializer.append(helper.make_tensor(_FLIP, _UINT8, [], [128]))
        self.graph.initializer.append(helper.make_tensor(_ZERO, _UINT8, [], [128]))
        del self.graph.node[:]
        self.graph.node.extend(_needed(self.nodes, {value.name for value in self.graph.output}))
        return self.proto

    def _qlinear_conv(self, node: Any) -> None:
        node.input[0], node.input[2], node.input[7] = self._to_unsigned(node.input[0]), _ZERO, _ZERO
        self._give(node)

    def _clip(self, node: Any) -> None:
        """A Clip of codes that are there as uint8."""
        bounds = [self.constants.get(name) if name else None for name in node.input[1:]]
        if any(name and bound is None for name, bound in zip(node.input[1:], bounds, strict=True)):
            self.nodes.append(node)
            return
        names = [self.unsigned[node.input[0]], *("" if b is None else self._shifted(b) for b in bounds)]
        node.input[:] = names
        self._give(node)

    def _give(self, node: Any) -> None:
        """Append a node that gives uint8 codes, and what makes them int8 again for those who want that."""
        from onnx import helper

        signed = node.output[0]
        unsigned, flipped = f"unsigned/{signed}", f"unsigned/{signed}/back"
        node.output[0] = unsigned
        self.unsigned[signed] = unsigned
        self.nodes += [
            node,
            helper.make_node("BitwiseXor", [unsigned, _FLIP], [flipped], name=flipped),
            helper.make_node("Cast", [flipped], [signed], name=f"{flipped}/Cast", to=_INT8),
        ]

    def _to_unsigned(self, name: str) -> str:
        from onnx import helper

        if name not in self.unsigned:
            bits, made = f"unsigned/{name}/bits", f"unsigned/{name}"
            self.nodes.append(helper.make_node("Cast", [name], [bits], name=bits, to=_UINT8))
            self.nodes.append(helper.make_node("BitwiseXor", [bits, _FLIP], [made], name=made))
            self.unsigned[name] = made
        return self.unsigned[name]

    def _shifted(self, bound: Any) -> str:
        """Name of a bound of codes, 128 higher."""
        from onnx import helper, numpy_helper

        name = f"unsigned/{bound.name}"
        if name not in self.constants:
            value = int(numpy_helper.to_array(bound)) + 128
            self.constants[name] = helper.make_tensor(name, _UINT8, [], [value])
            self.graph.initializer.append(self.constants[name])
        return name

    def _reads_signed(self, node: Any) -> bool:
        is_int8 = self.types.get(node.input[0]) == _INT8 and node.input[0] not in self.constants
        return is_int8 and len(node.input) == 2

    def _has_no_zero_points(self, node: Any) -> bool:
        """Whether the codes of input and output are int8 around 0."""
        from onnx import numpy_helper

        points = [self.constants.get(node.input[i]) for i in (2, 7)]
        return all(p is not None and p.data_type == _INT8 and not numpy_helper.to_array(p).any() for p in points)


def _needed(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """The nodes that the outputs depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
