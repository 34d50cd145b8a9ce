"""Decides which ops of a graph run quantized, and puts stubs where float meets quantized values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from torch import Tensor, fx, nn

from profiler.quant.fx.qconfigs import HYBRID_ATTRIBUTE
from profiler.quant.fx.wrapped import is_followed, is_wrapped
from profiler.quant.modules import class_name
from profiler.quant.naming import op_name
from profiler.quant.ops.functional import FunctionOp, spec_of_op
from profiler.quant.ops.registry import Family, OpSpec, get_spec, refusal_of, spec_of_module
from profiler.quant.qconfig import QConfig, high_precision_output
from profiler.quant.stubs import DeQuantStub, QuantStub
from profiler.quant.swap import QuantEffect

# Functions that give (values, indices).
_WITH_INDICES = frozenset("max min median topk sort cummax cummin kthvalue".split())


# Functions that take the shape and dtype of their argument, not its values.
_MAKES_CONSTANTS = frozenset("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty".split())
TAKEN_APART = "quant_taken_apart"
_SHARED_MEMORY = "it writes into memory that is read through another tensor: runs in float"


class Value(Enum):
    """What a node's result is."""

    QUANTIZED = "quantized"
    FLOAT = "float, inside the quantized region"
    OUTSIDE = "outside the quantized region"
    EITHER = "what wrapped code gives: quantized or float, known when it runs"


_IN_REGION = {Value.QUANTIZED, Value.FLOAT, Value.EITHER}


@dataclass
class Plan:
    """Which call_module targets become quantized with which qconfig, and what to tell the user.

    `stubs` and `dequants` are the paths of those that were put in.
    """

    quantized: dict[str, QConfig] = field(default_factory=dict)
    effects: list[QuantEffect] = field(default_factory=list)
    stubs: set[str] = field(default_factory=set)
    dequants: set[str] = field(default_factory=set)


def spec_of_node(root: nn.Module, node: fx.Node) -> OpSpec | None:
    """Operator that a call_module node runs, or None where there is no quantized form."""
    module = root.get_submodule(str(node.target))
    return spec_of_op(module, str(node.args[0]) if node.args else "")


class BoundaryPlanner:
    """One walk over a graph in order.

    A weighted op whose input is quantized, or float inside the region, runs quantized; an op with its own output
    scale does if one of its inputs is quantized; scale-keeping ops follow their input; all else runs in float.

    Args:
        root: the module that owns the graph's targets.
        graph: graph with functions as modules.
        auto_stubs: the model has no stubs of its own: its inputs count as float inside the region.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, *, auto_stubs: bool) -> None:
        self.root, self.graph, self.auto_stubs = root, graph, auto_stubs
        self.values: dict[fx.Node, Value] = {}
        self.plan = Plan()
        self._stubs: dict[fx.Node, fx.Node] = {}
        self._dequants: dict[fx.Node, fx.Node] = {}
        self._names: dict[Any, str] = {}  # of the stub behind each value; several recorded runs share it
        self._default = next((q for m in root.modules() if (q := _qconfig(m)) and q.activation is not None), None)

    def run(self) -> Plan:
        """Insert the stubs and say what becomes quantized."""
        for node in list(self.graph.nodes):
            if node.op == "placeholder":
                is_inside = _is_float(node) if node.meta.get("constant") else self.auto_stubs
                self.values[node] = Value.FLOAT if is_inside else Value.OUTSIDE
            elif node.op == "get_attr":
                if _is_number_or_integer(self.root, str(node.target)):
                    node.meta["kind"] = "int"
                self.values[node] = Value.FLOAT if _is_float(node) else Value.OUTSIDE
            elif node.op == "call_module":
                value = self._visit(node)
                self.values[node] = Value.FLOAT if node.meta.get("read_unseen") and value in _IN_REGION else value
            elif node.op == "output":
                self._dequantize_inputs(node)
            else:  # plain Python, such as an index into a tuple of tensors
                sources = [n for n in node.all_input_nodes if n in self.values]
                if _selects_indices(self.root, node):
                    node.meta["kind"], sources = "int", []
                self.values[node] = self.values[sources[0]] if sources else Value.OUTSIDE
        return self.plan

    def _visit(self, node: fx.Node) -> Value:
        module = self.root.get_submodule(str(node.target))
        qconfig = _qconfig(module)
        if is_wrapped(module):
            return self._visit_wrapped(node, module, qconfig)
        spec = spec_of_node(self.root, node)
        plain = _plain_arguments(node, spec)
        self._dequantize(plain, node)
        inputs = [n for n in node.all_input_nodes if n in self.values and n not in plain]
        kinds = {self.values[n] for n in inputs}
        if spec is not None and spec.family is Family.STUB:
            return self._visit_stub(node, module, qconfig)
        if spec is not None and spec.family is Family.SCALE_KEEPING and not _writes_shared(node):
            return self.values[inputs[0]] if inputs else Value.OUTSIDE
        if spec is not None and spec.family is Family.INDEX:
            node.meta["kind"] = "int"
            return Value.OUTSIDE
        if spec is not None and spec.keeps_scale is not None and spec.keeps_scale(node.args, node.kwargs):
            return next((v for v in (Value.QUANTIZED, Value.EITHER, Value.FLOAT) if v in kinds), Value.OUTSIDE)
        if (
            spec is None
            or qconfig is None
            or "float_reason" in node.meta
            or _writes_shared(node)
            or not self._can_run(spec, kinds)
        ):
            return self._leave_in_float(node, module, spec, qconfig, kinds)
        for source in inputs:
            if self.values[source] is not Value.QUANTIZED and _is_float(source):
                node.replace_input_with(source, self._quantize(source, node, qconfig))
        self.plan.quantized[str(node.target)] = qconfig
        is_plain = qconfig.activation is None or node.meta.get("shares_memory")
        return Value.FLOAT if is_plain else Value.QUANTIZED

    def _can_run(self, spec: OpSpec, kinds: set[Value]) -> bool:
        if spec.family in (Family.GEMM, Family.COMPOSITE):
            return bool(kinds & _IN_REGION)
        if spec.family is Family.TABLE:  # its indices do not tell the region; before a user's own stub it stays float
            return self.auto_stubs
        return bool(kinds & {Value.QUANTIZED, Value.EITHER})

    def _visit_wrapped(self, node: fx.Node, module: nn.Module, qconfig: QConfig | None) -> Value:
        """Quantized values may enter code that calls quantized ops; other code gets and gives real values."""
        inputs = [n for n in node.all_input_nodes if n in self.values]
        is_in_region = any(self.values[n] in _IN_REGION for n in inputs)
        if not is_followed(module) or qconfig is None:
            self._dequantize_inputs(node)
            return Value.FLOAT if is_in_region else Value.OUTSIDE
        for source in inputs:
            if self.values[source] is Value.FLOAT and _is_float(source):
                node.replace_input_with(source, self._quantize(source, node, qconfig))
        ends_region = any(isinstance(m, DeQuantStub) for m in module.modules())
        return Value.OUTSIDE if ends_region or not is_in_region else Value.EITHER

    def _visit_stub(self, node: fx.Node, module: nn.Module, qconfig: QConfig | None) -> Value:
        if type(module).__name__ == "DeQuantStub":
            self._replace(str(node.target), DeQuantStub())
            return Value.OUTSIDE
        if qconfig is None or qconfig.activation is None:
            qconfig = self._default
        if qconfig is None:
            return Value.OUTSIDE
        self.plan.quantized[str(node.target)] = qconfig
        return Value.QUANTIZED

    def _leave_in_float(
        self, node: fx.Node, module: nn.Module, spec: OpSpec | None, qconfig: QConfig | None, kinds: set[Value]
    ) -> Value:
        self._dequantize_inputs(node)
        makes_constant = isinstance(module, FunctionOp) and module.function in _MAKES_CONSTANTS
        touches_region = bool(kinds & _IN_REGION) and node.meta.get("kind") not in ("int", "other")
        touches_region = touches_region and not makes_constant
        begins_region = self.auto_stubs and spec is not None and spec.family is Family.TABLE
        if touches_region or begins_region or (spec is not None and spec.family is Family.GEMM):
            name = op_name(str(node.target))
            asked_for = self._default if module.__dict__.get(TAKEN_APART) else qconfig
            requested = "None" if asked_for is None else asked_for.activation_dtype
            reason = _SHARED_MEMORY if _writes_shared(node) else node.meta.get("float_reason", "")
            reason = reason or _float_reason(module, spec, qconfig)
            self.plan.effects.append(QuantEffect(name, requested, "torch.float32", reason))
        return Value.FLOAT if kinds & _IN_REGION or begins_region else Value.OUTSIDE

    def _quantize(self, source: fx.Node, user: fx.Node, qconfig: QConfig) -> fx.Node:
        if source not in self._stubs:
            stub_qconfig = qconfig if qconfig.activation is not None else self._default
            if qconfig.input is not None:
                stub_qconfig = replace(qconfig, activation=qconfig.input, fallback_from="", fallback_reason="")
            if stub_qconfig is None:
                return source
            place = (source.meta.get("path"), source.meta.get("call")) if "record" in source.meta else source
            name = self._names.get(place) or self._free_name(f"{source.name}_activation_post_process")
            if place not in self._names:
                stub = QuantStub.automatic()
                stub.feeds_softmax = _only_feeds_softmax(self.root, source)
                self._names[place] = name
                self._replace(name, stub)
            self.plan.stubs.add(name)
            with self.graph.inserting_after(source):
                self._stubs[source] = self.graph.call_module(name, (source,))
            self._stubs[source].meta["scope"] = ""
            self.values[self._stubs[source]] = Value.QUANTIZED
            self.plan.quantized[name] = stub_qconfig
        return self._stubs[source]

    def _dequantize_inputs(self, node: fx.Node) -> None:
        self._dequantize(node.all_input_nodes, node)

    def _dequantize(self, sources: list[fx.Node], node: fx.Node) -> None:
        for source in sources:
            if self.values.get(source) not in (Value.QUANTIZED, Value.EITHER):
                continue
            if source not in self._dequants:
                reader = f"{node.name}_input" if node.op == "call_module" else source.name
                name = self._free_name(f"{reader}_dequant")
                stub = DeQuantStub()
                stub.is_automatic = True
                self._replace(name, stub)
                self.plan.dequants.add(name)
                with self.graph.inserting_after(source):
                    self._dequants[source] = self.graph.call_module(name, (source,))
                self._dequants[source].meta["scope"] = ""
                self.values[self._dequants[source]] = Value.FLOAT
            node.replace_input_with(source, self._dequants[source])

    def _free_name(self, name: str) -> str:
        taken = {n for n, _ in self.root.named_children()} | set(dir(self.root))
        return name if name not in taken else self._free_name(f"{name}_")

    def _replace(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        module.train(self.root.training)
        owner = self.root.get_submodule(parent)
        if name in owner._modules:
            owner._modules[name] = module
        else:
            owner.add_module(name, module)


def use_high_precision_outputs(root: nn.Module, graph: fx.Graph, plan: Plan) -> None:
    """Give every weighted op whose calls all feed DeQuantStubs only an unquantized output (in place, in the plan)."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and str(node.target) in plan.quantized:
            calls.setdefault(str(node.target), []).append(node)
    for target, nodes in calls.items():
        spec = spec_of_node(root, nodes[0])
        is_weighted = spec is not None and spec.family is Family.GEMM
        if is_weighted and all(_feeds_only_dequants(root, node) for node in nodes):
            plan.quantized[target] = high_precision_output(plan.quantized[target])


def _feeds_only_dequants(root: nn.Module, node: fx.Node) -> bool:
    if not node.users:
        return False
    for user in node.users:
        if user.op != "call_module":
            return False
        module = root.get_submodule(str(user.target))
        spec = spec_of_node(root, user)
        keeps_scale = spec is not None and spec.family is Family.SCALE_KEEPING
        if not isinstance(module, DeQuantStub) and not (keeps_scale and _feeds_only_dequants(root, user)):
            return False
    return True


def _only_feeds_softmax(root: nn.Module, node: fx.Node, is_sum: bool = False) -> bool:
    """Whether every reader of a value adds it to something that ends in a softmax."""

    def leads_there(user: fx.Node) -> bool:
        spec = spec_of_node(root, user) if user.op == "call_module" else None
        if spec is None:
            return False
        if spec.name in ("softmax", "log_softmax"):
            return is_sum
        is_add = spec.name == "add"
        return (is_add or spec.family is Family.SCALE_KEEPING) and _only_feeds_softmax(root, user, is_sum or is_add)

    return bool(node.users) and all(leads_there(user) for user in node.users)


def _qconfig(module: nn.Module) -> QConfig | None:
    value = module.__dict__.get("qconfig")
    return value if isinstance(value, QConfig) else None


def _plain_arguments(node: fx.Node, spec: OpSpec | None) -> list[fx.Node]:
    """Nodes in arguments that the operator takes as they are."""
    found = []
    for position, name in spec.plain_arguments if spec is not None else ():
        given = node.args[position] if len(node.args) > position else node.kwargs.get(name)
        found += [given] if isinstance(given, fx.Node) else []
    return found


def _is_number_or_integer(root: nn.Module, path: str) -> bool:
    """Whether an attribute is an operand that needs no scale: a 0-d tensor, or one that is not float."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return not isinstance(value, Tensor) or value.dim() == 0 or not value.is_floating_point()


def _selects_indices(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node takes the indices out of what max over a dim, topk or sort gives."""
    source = node.args[0] if node.args else None
    if node.op != "call_function" or not isinstance(source, fx.Node) or source.op != "call_module":
        return False
    if len(node.args) < 2:
        return False
    module = root.get_submodule(str(source.target))
    gives_indices = isinstance(module, FunctionOp) and module.function in _WITH_INDICES
    return gives_indices and node.args[1] in (1, -1, "indices")


def _writes_shared(node: fx.Node) -> bool:
    return bool(node.meta.get("shares_memory") and node.meta.get("writes"))


def _is_float(node: fx.Node) -> bool:
    return bool(node.meta.get("kind", "float") == "float")


def _float_reason(module: nn.Module, spec: OpSpec | None, qconfig: QConfig | None) -> str:
    if module.__dict__.get(HYBRID_ATTRIBUTE):
        return "hybrid_dict: runs in float between automatic stubs"
    if module.__dict__.get(TAKEN_APART):
        return "other code reads its parameters, or calls its forward: it stays in float"
    if qconfig is None:
        return "qconfig is None"
    if spec is None and refusal_of(module):
        return refusal_of(module)
    if spec is None:
        return f"no quantized form of {class_name(module)}: runs in float between automatic stubs"
    if spec.family is Family.FUNCTION:
        return "all its inputs are float: runs in float"
    return "its input is float: a QuantStub is missing before it"


def has_stubs(model: nn.Module) -> bool:
    """Whether the user put a QuantStub or DeQuantStub into the model."""
    specs = (spec_of_module(m) for m in model.modules())
    return any(spec is not None and spec.family is Family.STUB for spec in specs)


def has_quant_stub(model: nn.Module) -> bool:
    """Whether the user said where quantized values begin."""
    return any(spec_of_module(m) is get_spec("quant_stub") for m in model.modules())
