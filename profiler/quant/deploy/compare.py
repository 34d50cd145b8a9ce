"""Walks two recordings of one model side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from profiler.errors import UnsupportedOpError


@dataclass(frozen=True)
class ConstantPair:
    """A constant operand that differs between two recordings.

    Attributes:
        node: the first recording's node.
        index: which of its operands.
        first: contents in the first recording.
        second: contents in the second.
    """

    node: Any
    index: int
    first: Tensor
    second: Tensor

    @property
    def op(self) -> str:
        """Name of the model's op that the node belongs to."""
        return op_of(self.node)


class PartedError(UnsupportedOpError):
    """Two recordings run different nodes.

    Attributes:
        op: op of the model where they part.
    """

    def __init__(self, op: str, message: str) -> None:
        super().__init__(message)
        self.op = op


def op_of(node: Any) -> str:
    """Name of the model's op that a node belongs to: what its name begins with."""
    scope, _, last = str(node.name).rpartition("/")
    return str(node.name)[: -len("/out")] if last == "out" else scope or "the model's own code"


def walk(first: Any, second: Any) -> Iterator[ConstantPair]:
    """Constants that differ between two recordings with the same nodes.

    Args:
        first: `onnx.GraphProto`.
        second: the same model's at another run.

    Raises:
        PartedError: the nodes, their settings or their wiring differ.
    """
    known_first, known_second = ({i.name: i for i in graph.initializer} for graph in (first, second))
    same = {a.name: b.name for a, b in zip(first.input, second.input, strict=True)}
    for a, b in zip(first.node, second.node, strict=False):
        if a.op_type != b.op_type or len(a.input) != len(b.input) or len(a.output) != len(b.output):
            raise PartedError(op_of(a), f"one run has {a.op_type} where the other has {b.op_type} of {op_of(b)}")
        if op_of(a) != op_of(b):
            raise PartedError(op_of(a), f"the other run goes on with {op_of(b)}")
        if list(a.attribute) != list(b.attribute):
            raise PartedError(op_of(a), f"the settings of its {a.op_type} differ")
        for index, (x, y) in enumerate(zip(a.input, b.input, strict=True)):
            if x in known_first and y in known_second:
                if not _is_same(known_first[x], known_second[y]):
                    yield ConstantPair(a, index, _tensor(known_first[x]), _tensor(known_second[y]))
            elif x and same.get(x) != y:
                raise PartedError(op_of(a), f"operand {index} of its {a.op_type} comes from elsewhere")
        same.update(zip(a.output, b.output, strict=True))
    longer = max((first, second), key=lambda graph: len(graph.node))
    if len(first.node) != len(second.node):
        node = longer.node[min(len(first.node), len(second.node))]
        raise PartedError(op_of(node), f"one run ends where the other has {node.op_type}")


def _is_same(a: Any, b: Any) -> bool:
    return bool(a.data_type == b.data_type and a.dims == b.dims and a.raw_data == b.raw_data)


def _tensor(initializer: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(initializer).copy())
