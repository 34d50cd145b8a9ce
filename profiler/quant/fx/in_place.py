"""Functions that overwrite their argument, as a traced graph shows them."""

from __future__ import annotations

from torch import fx

# Results that share memory with their argument.
_VIEWS = frozenset(
    "view reshape flatten unflatten transpose permute movedim swapaxes squeeze unsqueeze expand expand_as getitem "
    "narrow select split chunk unbind detach T mT t view_as diagonal unfold".split()
)


def is_in_place(node: fx.Node) -> bool:
    """Whether a function node overwrites its first argument: `x.add_(y)`, `x += y`."""
    if node.kwargs.get("inplace"):
        return True
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    return name in ("iadd", "isub", "imul", "itruediv") or (name.endswith("_") and not name.endswith("__"))


def write_through_view(graph: fx.Graph) -> fx.Node | None:
    """The first node that overwrites a view of a value which is read again later, or None.

    A graph hands values on and shares no memory, so such a write would be lost.
    """
    nodes: list[fx.Node] = list(graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        if node.op not in ("call_function", "call_method") or not is_in_place(node) or not node.args:
            continue
        source = node.args[0]
        while isinstance(source, fx.Node) and source.meta.get("function") in _VIEWS and source.args:
            base = source.args[0]
            if isinstance(base, fx.Node) and any(order[user] > order[node] for user in base.users):
                return node
            source = base
    return None
