"""The ops of a model that can be given dtypes, and who reads whose result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from profiler.quant.fx.fuse import fusion_groups
from profiler.quant.fx.wrapped import wrapped_targets
from profiler.quant.modules import Identity, class_name, is_leaf
from profiler.quant.naming import op_name
from profiler.quant.ops.epilogue import Epilogue
from profiler.quant.ops.float_functional import FloatFunctional
from profiler.quant.ops.functional import spec_of_op
from profiler.quant.ops.registry import Family, OpSpec
from profiler.quant.setters.ports import FLOAT, INPUT, OUTPUT
from profiler.quant.setters.settable import Port, SettableOp, ports_of
from profiler.quant.stubs import DeQuantStub


class Network:
    """The ops of a model, before fusion.

    Args:
        root: model with its qconfigs; functions are modules.
        graph: graph of call_module nodes, or None where who reads whose result is not known (eager).
    """

    def __init__(self, root: nn.Module, graph: fx.Graph | None) -> None:
        self.root, self.graph = root, graph
        self.paths: dict[int, list[str]] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module), []).append(path)
        self.ops: list[SettableOp] = []
        self._op_of: dict[int, SettableOp] = {}
        if graph is None:
            self._add_modules(root)
        else:
            self._add_nodes(graph)

    @property
    def known_names(self) -> list[str]:
        """Names of ops and of the modules that hold them."""
        return sorted({op_name(path) for paths in self.paths.values() for path in paths if path})

    def op_of(self, node: fx.Node) -> SettableOp | None:
        """The op that a node is a call of."""
        return self._op_of.get(id(self._module(node))) if node.op == "call_module" else None

    def operands(self, op: SettableOp) -> list[list[fx.Node]]:
        """Nodes of each tensor operand, over all calls; a weighted op has one."""
        found: list[list[fx.Node]] = []
        for call in op.calls:
            plain = _plain_arguments(call, op.spec)
            nodes: list[fx.Node] = []
            fx.node.map_arg((call.args, call.kwargs), nodes.append)
            nodes = [n for n in nodes if n not in plain and n.meta.get("kind", "float") == "float"]
            for i, node in enumerate(nodes[:1] if op.family is Family.GEMM else nodes):
                found += [[]] if i == len(found) else []
                found[i].append(node)
        return found

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Nodes that gave a value its dtype: what keeps the scale is passed through."""
        if not self._passes_on(node):
            return [node]
        return [source for before in node.all_input_nodes[:1] for source in self.sources(before)]

    def readers(self, op: SettableOp) -> Iterator[tuple[fx.Node, SettableOp]]:
        """Calls that read an op's output, and the ops; those that keep the scale too, and who reads their result."""
        yield from self._readers([user for node in op.results for user in node.users])

    def feeds_only_outputs(self, op: SettableOp) -> bool:
        """Whether all that reads an op's output is a DeQuantStub, an op in float, or the end of the model."""
        return bool(op.results) and all(self._only_outputs(node) for node in op.results)

    def is_quantized(self, node: fx.Node) -> bool:
        """Whether a node gives values whose dtype an op's port says."""
        op = self.op_of(node)
        return op is not None and OUTPUT in op.ports and op.ports[OUTPUT].dtype != FLOAT

    def is_made(self, node: fx.Node) -> bool:
        """Whether ops make a value in a quantized form, so that no automatic stub does."""
        return all(self.is_quantized(source) for source in self.sources(node))

    def stub_operands(self, op: SettableOp) -> list[fx.Node]:
        """Float values that an op reads through an automatic stub."""
        if INPUT not in op.ports or self.graph is None:
            return []
        nodes = [node for operand in self.operands(op) for node in operand if not self.is_made(node)]
        return list(dict.fromkeys(nodes))

    def stub_readers(self, value: fx.Node) -> list[tuple[fx.Node, SettableOp]]:
        """Calls that read a float value, and the ops: they share the automatic stub behind it."""
        found = [(user, self.op_of(user)) for user in value.users]
        return [(user, op) for user, op in found if op is not None and INPUT in op.ports and user in op.calls]

    def _only_outputs(self, node: fx.Node) -> bool:
        return bool(node.users) and all(self._is_output(user) for user in node.users)

    def _is_output(self, user: fx.Node) -> bool:
        if user.op == "output":
            return True
        op = self.op_of(user)
        if op is not None and (op.runs_in_float or isinstance(op.modules[0], DeQuantStub)):
            return True
        return self._passes_on(user) and self._only_outputs(user)

    def _readers(self, users: list[fx.Node]) -> Iterator[tuple[fx.Node, SettableOp]]:
        for user in users:
            op = self.op_of(user)
            if op is not None and not op.runs_in_float:
                yield user, op
            if self._passes_on(user):
                yield from self._readers(list(user.users))

    def _passes_on(self, node: fx.Node) -> bool:
        """Whether a node hands on the scale of its first input: so do indices into a tuple of tensors."""
        op = self.op_of(node)
        return node.op in ("call_function", "call_method") or (op is not None and _call_keeps_scale(op.spec, node))

    def _module(self, node: fx.Node) -> nn.Module:
        return self.root.get_submodule(str(node.target))

    def _add_nodes(self, graph: fx.Graph) -> None:
        home_of = {node: (home, chain) for home, chain in fusion_groups(self.root, graph) for node in chain}
        for node in graph.nodes:
            if node.op != "call_module":
                continue
            home, chain = home_of.get(node, (str(node.target), [node]))
            if node is not chain[0]:
                continue
            op = self._op_of.get(id(self._module(node))) or self._add_op(home, chain)
            op.calls.append(chain[0])
            op.results.append(chain[-1])
        regions = _regions(graph, self)
        for op in self.ops:
            keeps_scale = all(_call_keeps_scale(op.spec, call) for call in op.calls)
            op.is_outside = not keeps_scale and op.base is not None and not any(regions[c].is_inside for c in op.calls)
            if keeps_scale or op.is_outside:
                op.ports.clear()
        for target in wrapped_targets(self.root, graph):
            self._add_modules(self.root.get_submodule(target))

    def _add_op(self, home: str, chain: list[fx.Node]) -> SettableOp:
        modules = [self._module(node) for node in chain]
        method = str(chain[0].args[0]) if chain[0].args else ""
        op = self._make(home, modules, spec_of_op(modules[0], method))
        op.has_add |= any(str(node.target) == home for node in chain[1:])
        for module in modules:
            self._op_of[id(module)] = op
        return op

    def _add_modules(self, host: nn.Module) -> None:
        """Add what no graph shows: ops of the eager front end, or of wrapped code."""
        for module in host.modules():
            if id(module) in self._op_of or isinstance(module, Identity):
                continue
            path = self.paths[id(module)][0]
            if is_leaf(module):
                self._op_of[id(module)] = self._make(path, [module], spec_of_op(module))
            elif self.graph is None:  # what its forward calls as functions takes its qconfig
                op = self._make(path, [module], None)
                op.name = f"functions in {path or class_name(module)}"
                op.ports = {} if op.base is None else {OUTPUT: Port(op.base.activation_dtype)}

    def _make(self, path: str, modules: list[nn.Module], spec: OpSpec | None) -> SettableOp:
        names = {name for module in modules for p in self.paths[id(module)] for name in (p, op_name(p))}
        base = modules[0].__dict__.get("qconfig")
        op = SettableOp(op_name(path), path, modules, names, spec, base)
        op.has_add = getattr(modules[0], "epilogue", Epilogue()).has_add
        if base is not None and (spec is not None or isinstance(modules[0], FloatFunctional)):
            op.ports = ports_of(modules[0], spec, base)
        self.ops.append(op)
        return op


@dataclass(frozen=True)
class _Region:
    """Whether a value is quantized, or float where quantized ops may read it; and whether its op runs quantized."""

    is_quantized: bool = False
    is_readable: bool = False
    is_inside: bool = False


def _regions(graph: fx.Graph, network: Network) -> dict[fx.Node, _Region]:
    """What the boundary planner will find, told by families alone."""
    families = [op.family for op in network.ops]
    auto_stubs = not any(f is Family.STUB and op.ports for f, op in zip(families, network.ops, strict=True))
    regions: dict[fx.Node, _Region] = {}
    for node in graph.nodes:
        before = [regions[n] for n in node.all_input_nodes]
        op = network.op_of(node)
        is_readable = any(r.is_readable for r in before)
        if op is not None and op.base is not None and op.is_followed and is_readable:
            ends = any(class_name(m) == "DeQuantStub" for m in op.modules[0].modules())
            regions[node] = _Region(not ends, not ends, True)
            continue
        if op is None or op.base is None or op.spec is None:
            is_free = node.op == "get_attr" or (node.op == "placeholder" and auto_stubs)
            passed = before[0] if before and op is None else _Region(is_readable=is_free or is_readable)
            regions[node] = passed
            continue
        if _call_keeps_scale(op.spec, node):
            regions[node] = before[0] if before else _Region()
            continue
        needed = {Family.GEMM: is_readable, Family.COMPOSITE: is_readable, Family.TABLE: auto_stubs}
        is_stub = op.family is Family.STUB and bool(op.ports)
        runs = is_stub or needed.get(op.spec.family, any(r.is_quantized for r in before))
        is_index = op.family is Family.INDEX or (op.family is Family.STUB and not op.ports)
        runs = runs and not is_index
        regions[node] = _Region(runs, (runs or is_readable) and not is_index, runs)
    return regions


def _call_keeps_scale(spec: OpSpec | None, call: fx.Node) -> bool:
    if spec is None:
        return False
    is_such_call = spec.keeps_scale is not None and spec.keeps_scale(call.args, call.kwargs)
    return spec.family is Family.SCALE_KEEPING or is_such_call


def _plain_arguments(call: fx.Node, spec: OpSpec | None) -> list[Any]:
    pairs = spec.plain_arguments if spec is not None else ()
    return [call.args[i] if len(call.args) > i else call.kwargs.get(name) for i, name in pairs]
