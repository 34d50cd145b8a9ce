"""What a planned graph says about each op call of the running model, by the op's path and its call number."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from profiler.quant.fx.boundaries import Plan
from profiler.quant.naming import NOT_OPS


@dataclass(frozen=True)
class CallPlan:
    """What happens at the boundaries of one op call.

    Attributes:
        stubs: (number of the tensor among the arguments, path of the QuantStub that it passes before the op).
        gives_plain: the result becomes real values at once, since its memory is written through another tensor, or
            code that no function shows reads it.
        is_read: something comes of the result. What nobody reads is not observed where the op has other calls.
    """

    stubs: tuple[tuple[int, str], ...] = ()
    gives_plain: bool = False
    is_read: bool = True


@dataclass
class RunPlan:
    """Plans of all recorded op calls.

    Attributes:
        calls: by path of the op's module (`_generated_add_0` for functions), in the order of its calls.
        recorded: paths of all ops that ran, those that stay in float too.
        unrecorded: names of ops that ran later and were in no record.
    """

    calls: dict[str, tuple[CallPlan, ...]] = field(default_factory=dict)
    recorded: frozenset[str] = frozenset()
    unrecorded: dict[str, None] = field(default_factory=dict)

    def of_call(self, path: str, call: int) -> CallPlan:
        """Plan of one call; a call beyond those that were recorded is like the last of them."""
        known = self.calls.get(path, ())
        return known[min(call, len(known) - 1)] if known else CallPlan()

    @staticmethod
    def of_graph(graph: fx.Graph, plan: Plan) -> RunPlan:
        """Read the boundaries off a graph that `plan_graph` went over."""
        calls: dict[str, dict[int, CallPlan]] = {}
        recorded = set()
        read = _read(graph)
        paths_read = {node.meta.get("path") for node in read}
        for node in graph.nodes:
            path = node.meta.get("path")
            if node.op != "call_module" or path is None:
                continue
            recorded |= {path, node.meta.get("deferred") or path}
            tensors = _nodes_in_order(node)
            stubs = tuple((i, str(t.target)) for i, t in enumerate(tensors) if str(t.target) in plan.stubs)
            gives_plain = bool(node.meta.get("shares_memory") or node.meta.get("read_unseen"))
            before = calls.setdefault(path, {}).get(node.meta["call"], CallPlan())
            both = {**dict(stubs), **dict(before.stubs)}  # runs may differ in which arguments come quantized
            is_read = node in read or path not in paths_read
            is_read = is_read or (before.is_read and node.meta["call"] in calls[path])
            calls[path][node.meta["call"]] = CallPlan(tuple(both.items()), gives_plain or before.gives_plain, is_read)
        by_number = {path: tuple(found[i] for i in sorted(found)) for path, found in calls.items()}
        needed = {path: plans for path, plans in by_number.items() if any(p != CallPlan() for p in plans)}
        return RunPlan(needed, frozenset(recorded))


def _nodes_in_order(node: fx.Node) -> list[fx.Node]:
    """Nodes among the arguments, each as often as it stands there."""
    found: list[fx.Node] = []

    def add(source: fx.Node) -> fx.Node:
        found.append(source)
        return source

    fx.node.map_arg((node.args, node.kwargs), add)
    return found


def _read(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose results reach an output, a fact that the code reads, or memory that others read."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        is_end = node.op == "output" or node.meta.get("function") in NOT_OPS or node.meta.get("writes")
        if is_end or any(user in found for user in node.users):
            found.add(node)
    return found
