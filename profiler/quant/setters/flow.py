"""The ops of a model that can be given dtypes, and who reads whose result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from profiler.quant.affine import qint8
from profiler.quant.fx.fuse import fusion_groups
from profiler.quant.modules import Identity, class_name, is_leaf
from profiler.quant.naming import op_name
from profiler.quant.ops.epilogue import Epilogue
from profiler.quant.ops.float_functional import FloatFunctional
from profiler.quant.ops.functional import spec_of_op
from profiler.quant.ops.registry import Family, OpSpec
from profiler.quant.qconfig import QConfig
from profiler.quant.setters.ports import FLOAT, INPUT, OUTPUT, WEIGHT
from profiler.quant.stubs import DeQuantStub

_WITHOUT_PORTS = {
    Family.SCALE_KEEPING: "it keeps the dtype and scale of its input; name the op that feeds it",
    Family.INDEX: "its result is not quantized",
    Family.STUB: "its result is float",
}


@dataclass
class Port:
    """Dtype and threshold of one port, and who asked for them."""

    dtype: str
    threshold: float | None = None
    frozen_by: str = ""
    is_named: bool = False  # a template names this op itself, no prefix of it

    def __str__(self) -> str:
        return self.dtype if self.threshold is None else f"{self.dtype} with threshold {self.threshold:g}"


@dataclass
class SettableOp:
    """One op as it will be after fusion.

    Attributes:
        name: op name.
        path: path of the module that stays after fusion.
        modules: modules of the fused group, else the op's own.
        names: all names that mean this op: paths and op names of its modules.
        spec: operator, or None where it runs in float.
        base: qconfig that it would have without templates.
        ports: by name; those that it does not have are missing.
        calls: nodes that take its inputs.
        results: nodes whose users read its output.
        has_add: it is a weighted op fused with an add.
        is_outside: all its inputs are float, and it is no op that has them quantized.
        fallback: dtype of the output that a template asked for and why it is not so, or "" and "".
    """

    name: str
    path: str
    modules: list[nn.Module]
    names: set[str]
    spec: OpSpec | None
    base: QConfig | None
    ports: dict[str, Port] = field(default_factory=dict)
    calls: list[fx.Node] = field(default_factory=list)
    results: list[fx.Node] = field(default_factory=list)
    has_add: bool = False
    is_outside: bool = False
    fallback: tuple[str, str] = ("", "")

    @property
    def family(self) -> Family | None:
        return None if self.spec is None else self.spec.family

    @property
    def runs_in_float(self) -> bool:
        """Whether the op reads and gives float values."""
        return self.base is None or self.spec is None or self.is_outside

    def why_not(self, port: str) -> str:
        """Why the op lacks a port."""
        if self.base is None:
            return "qconfig is None: it runs in float"
        if self.is_outside:
            return "its inputs are float: it runs in float"
        if not self.ports:
            reason = _WITHOUT_PORTS.get(self.family) if self.family is not None else None
            return reason or "it has no quantized form: it runs in float"
        if port == WEIGHT:
            return "it has no weight of its own dtype"
        return f"it has no {port} that can be set"


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
            self._add_modules()
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

    def _add_op(self, home: str, chain: list[fx.Node]) -> SettableOp:
        modules = [self._module(node) for node in chain]
        method = str(chain[0].args[0]) if chain[0].args else ""
        op = self._make(home, modules, spec_of_op(modules[0], method))
        op.has_add |= any(str(node.target) == home for node in chain[1:])
        for module in modules:
            self._op_of[id(module)] = op
        return op

    def _add_modules(self) -> None:
        for path, module in self.root.named_modules():
            if is_leaf(module) and not isinstance(module, Identity):
                self._op_of[id(module)] = self._make(path, [module], spec_of_op(module))
            elif not is_leaf(module):  # what its forward calls as functions takes its qconfig
                op = self._make(path, [module], None)
                op.name = f"functions in {path or class_name(module)}"
                op.ports = {} if op.base is None else {OUTPUT: Port(op.base.activation_dtype)}

    def _make(self, path: str, modules: list[nn.Module], spec: OpSpec | None) -> SettableOp:
        names = {name for module in modules for p in self.paths[id(module)] for name in (p, op_name(p))}
        base = modules[0].__dict__.get("qconfig")
        op = SettableOp(op_name(path), path, modules, names, spec, base)
        op.has_add = getattr(modules[0], "epilogue", Epilogue()).has_add
        if base is not None and (spec is not None or isinstance(modules[0], FloatFunctional)):
            op.ports = _ports(modules[0], spec, base)
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


def _ports(module: nn.Module, spec: OpSpec | None, base: QConfig) -> dict[str, Port]:
    family = Family.FUNCTION if spec is None else spec.family
    if family in (Family.SCALE_KEEPING, Family.INDEX) or class_name(module) == "DeQuantStub":
        return {}
    ports = {OUTPUT: Port(base.activation_dtype)}
    has_weight = family is Family.GEMM or (family is Family.COMPOSITE and next(module.parameters(), None) is not None)
    if has_weight and base.weight is not None:
        ports[WEIGHT] = Port(dtype_of(base.weight))
    if family not in (Family.STUB, Family.TABLE):
        ports[INPUT] = Port(dtype_of(base.input or base.activation))
    return ports


def dtype_of(factory: Any) -> str:
    """Dtype that a fake-quant factory makes."""
    return str(getattr(factory, "keywords", {}).get("dtype", qint8))


def _call_keeps_scale(spec: OpSpec | None, call: fx.Node) -> bool:
    if spec is None:
        return False
    is_such_call = spec.keeps_scale is not None and spec.keeps_scale(call.args, call.kwargs)
    return spec.family is Family.SCALE_KEEPING or is_such_call


def _plain_arguments(call: fx.Node, spec: OpSpec | None) -> list[Any]:
    pairs = spec.plain_arguments if spec is not None else ()
    return [call.args[i] if len(call.args) > i else call.kwargs.get(name) for i, name in pairs]
