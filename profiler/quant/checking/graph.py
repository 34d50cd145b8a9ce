"""A model's graph as rows of text: from its fx graph, or from the op calls of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx

from profiler.quant.naming import canonical_function_name

GRAPH_HEAD = ("opcode", "name", "target", "args", "kwargs")


@dataclass(frozen=True)
class GraphRow:
    """One node: what it does (`call_module` ...), its name, what it calls, and with which arguments."""

    opcode: str
    name: str
    target: str
    args: str
    kwargs: str


def rows_of_graph(graph: fx.Graph) -> tuple[GraphRow, ...]:
    """A row for each node of an fx graph, in order."""
    return tuple(_row(node) for node in graph.nodes)


def _row(node: fx.Node) -> GraphRow:
    is_function = node.op == "call_function"
    target = f"torch.{canonical_function_name(node.target)}" if is_function else str(node.target)
    args, kwargs = (argument_text(value, tensor_text) for value in (tuple(node.args), dict(node.kwargs)))
    return GraphRow(node.op, node.name, target, args, kwargs)


def argument_text(value: Any, name_of: Callable[[Tensor], str]) -> str:
    """An argument as text, the same in every run: no addresses in it.

    Args:
        value: nest of tuples, lists, dicts and dataclasses.
        name_of: gives the name of a tensor.
    """
    if isinstance(value, Tensor):
        return name_of(value)
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {argument_text(item, name_of)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        items = ", ".join(argument_text(item, name_of) for item in value)
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"({items}{comma})" if isinstance(value, tuple) else f"[{items}]"
    if isinstance(value, slice):
        return f"slice({', '.join(argument_text(v, name_of) for v in (value.start, value.stop, value.step))})"
    if is_dataclass(value) and not isinstance(value, type):
        items = ", ".join(f"{f.name}={argument_text(getattr(value, f.name, None), name_of)}" for f in fields(value))
        return f"{type(value).__name__}({items})"
    plain = (str, int, float, complex, bytes, type(None), type(...), torch.dtype, torch.device, torch.memory_format)
    return repr(value) if isinstance(value, plain) else f"<{getattr(value, '__name__', type(value).__name__)}>"


def tensor_text(tensor: Tensor) -> str:
    """A tensor without a name: `tensor[2x3]`."""
    return f"tensor[{'x'.join(map(str, tensor.shape))}]"
