"""Functions that overwrite their argument, as a traced graph shows them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

# Results that share memory with their argument.
VIEWS = frozenset(
    "view reshape flatten unflatten transpose permute movedim swapaxes squeeze unsqueeze expand expand_as getitem "
    "narrow select split chunk unbind detach data T mT t view_as diagonal unfold contiguous".split()
)
_SPLITS = frozenset("split chunk unbind".split())


class InPlaceProxy(fx.Proxy):
    """A proxy for which `x += y` is a node of its own; by fx's own it would be traced as `x = x + y`."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._overwritten(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._overwritten(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._overwritten(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._overwritten(operator.itruediv, other)

    def _overwritten(self, function: Any, other: Any) -> fx.Proxy:
        proxy: fx.Proxy = self.tracer.create_proxy("call_function", function, (self, other), {})
        return proxy


def is_in_place(node: fx.Node) -> bool:
    """Whether a function node overwrites its first argument: `x.add_(y)`, `x += y`."""
    if node.kwargs.get("inplace"):
        return True
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    return name in ("iadd", "isub", "imul", "itruediv") or (name.endswith("_") and not name.endswith("__"))


@dataclass
class _Memory:
    """What a node's result shows: whose memory, under which name of it, and which parts of what was split."""

    owner: fx.Node
    tensor: fx.Node
    parts: dict[fx.Node, Any]

    def is_overlapped_by(self, other: _Memory) -> bool:
        """Whether another name shows some of the same memory; chunks of one split do not."""
        is_apart = any(other.parts.get(split, index) != index for split, index in self.parts.items())
        return self.owner is other.owner and self.tensor is not other.tensor and not is_apart


def write_that_is_lost(graph: fx.Graph, root: nn.Module) -> tuple[fx.Node, str] | None:
    """The first node whose write another name of the same memory would miss, and what is wrong, or None.

    A graph hands values on and shares no memory: whoever reads the overwritten value under its own name later gets the
    result, but a view of it, or what it is a view of, keeps the old values.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    shown: dict[fx.Node, _Memory] = {}
    for node in graph.nodes:
        if node.kwargs.get("out") is not None:
            return node, f"{_name(node)} writes into out="
        source = shown.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        writes = source is not None and _writes(node, root)
        is_item = node.op in ("call_function", "call_method") and node.meta.get("function") == "setitem"
        if source is not None and (writes or is_item) and source.owner.op == "get_attr":
            return node, f"{_name(node)} writes into a tensor that the forward makes, or into a buffer"
        if source is not None and writes:
            for other, memory in shown.items():
                if source.is_overlapped_by(memory) and any(order[user] > order[node] for user in other.users):
                    what = "a view of a value that is" if source.tensor is not source.owner else "a value whose view is"
                    return node, f"{_name(node)} overwrites {what} read again later"
        shown[node] = _shown_by(node, source, writes)
    return None


def _shown_by(node: fx.Node, source: _Memory | None, writes: bool) -> _Memory:
    if source is None:
        return _Memory(node, node, {})
    if writes:
        return source
    if node.op not in ("call_function", "call_method") or node.meta.get("function") not in VIEWS:
        return _Memory(node, node, {})
    origin = node.args[0]
    is_part = node.meta["function"] == "getitem" and getattr(origin, "meta", {}).get("function") in _SPLITS
    parts = {**source.parts, origin: node.args[1]} if is_part and isinstance(origin, fx.Node) else source.parts
    return _Memory(source.owner, node, parts)


def _writes(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    return node.op in ("call_function", "call_method") and is_in_place(node)


def _name(node: fx.Node) -> str:
    return str(node.meta.get("function") or node.target)
