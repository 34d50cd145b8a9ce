"""Follows one run of a float model and writes it down as a graph: modules, functions, which tensor went where."""

from __future__ import annotations

import inspect
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.utils.rnn import PackedSequence
from torch.utils.weak import WeakTensorKeyDictionary

from profiler.quant.calls import CallTracker, FunctionCall
from profiler.quant.modules import is_leaf
from profiler.quant.naming import NOT_OPS, canonical_function_name, is_reflected, join
from profiler.quant.ops.functional import tensors_in
from profiler.quant.overwriting import may_overwrite
from profiler.quant.qtensor import user_line
from profiler.quant.record.hidden import HiddenReads


class RunRecorder(CallTracker):
    """Writes runs of one model into one graph.

    Nodes carry the facts that `QuantTracer` notes (`scope`, `run`, `function`, `source`, `kind`), and more:
    `record`, the number of the run of the whole model; `path` and `call`, the attribute path of the op and how often
    it was called before in that run; `k`, the number in a function's name. A float value whose memory is written
    through another tensor while both are read has `shares_memory`; one that unseen code reads has `read_unseen`.

    Args:
        model: float model in eval.
        graph: graph to write into.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        self.model, self.graph = model, graph
        self.record, self.num_runs = -1, 0
        self._paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
        self._owned = {id(t): path for named in (model.named_parameters(), model.named_buffers()) for path, t in named}
        self._pending: list[tuple[Any, Any]] = []
        self._hidden = HiddenReads(self._note_hidden_read)
        self._begin_record()

    def _begin_record(self) -> None:
        self.record += 1
        self._nodes = WeakTensorKeyDictionary()
        self._constants = WeakTensorKeyDictionary()
        self._attributes: dict[str, fx.Node] = {}
        self._num_constants = 0
        self._calls: Counter[str] = Counter()
        self._runs: list[int] = []
        self._writes: list[tuple[fx.Node, list[fx.Node]]] = []

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """Run the model once and write it down; several runs lie one behind the other.

        Returns:
            The node of what the model gives; `record_runs` makes the graph's output of it.
        """
        self._begin_record()
        bound = inspect.signature(self.model.forward).bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            self._add_input(name, value)
        with _hooked(self), torch.no_grad(), self._hidden, self:
            result = self.model(*args, **kwargs)
        returned = self._as_nodes(result)
        kept = self._kept_besides(returned)
        node = self.graph.call_function(_returned, ((returned, kept) if kept else returned,))
        node.meta.update(scope="", run=self.num_runs, function="dir", kind="other", record=self.record)
        self._mark_shared_memory()
        return node

    def _kept_besides(self, returned: Any) -> tuple[fx.Node, ...]:
        """Nodes of tensors that outlive the forward otherwise: in objects that it returns, in attributes, in lists."""
        known: set[fx.Node] = set()
        fx.node.map_arg(returned, known.add)
        with torch._C.DisableTorchFunction():
            live = list(self._nodes)
            bases = {id(t._base) for t in live}  # what only views keep has those as readers
            alive = {self._nodes[t] for t in live if id(t) not in bases}
        return tuple(n for n in self.graph.nodes if n in alive - known and n.op != "placeholder")

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function that a module's own code called, and write it down."""
        sources = tensors_in([args, kwargs])
        if not any(self._is_activation(t) for t in sources):
            result = call.func(*args, **kwargs)
            for tensor in tensors_in(result):
                self._constants[tensor] = True
            return result
        given = self._as_nodes(args), self._as_nodes(kwargs)
        shared = self._others_in_memory(args[0]) if sources and may_overwrite(call.func, args, kwargs) else []
        result = call.func(*args, **kwargs)
        if is_reflected(call.func) and len(given[0]) > 1:
            given = ((given[0][1], given[0][0], *given[0][2:]), given[1])
        scope = self._paths.get(id(call.module), "")
        path = join(scope, call.attribute)
        node = self._add("call_function", call.func, given, path, scope)
        node.meta.update(function=call.name, k=call.k)
        node.meta.update(self._forward_called(call.module))
        written = args[0] if result is None and sources and isinstance(args[0], Tensor) else result
        self._give(node, written)
        if shared:
            self._writes.append((node, shared))
        return result

    def _forward_called(self, caller: nn.Module) -> dict[str, str]:
        """The op module whose `forward` the running code called by itself (`bn.forward(x)`), if there is one."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            owner = frame.f_locals.get("self") if frame.f_code.co_name == "forward" else None
            if owner is caller:
                break
            if isinstance(owner, nn.Module) and id(owner) in self._paths and is_leaf(owner):
                return {"forward_of": self._paths[id(owner)]}
            frame = frame.f_back
        return {}

    def read_fact(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """The code read a fact (shape, dtype, a value) of an activation: its op has a reader."""
        source = args[0] if args else None
        if isinstance(source, Tensor) and source in self._nodes:
            node = self.graph.call_function(_fact, (self._nodes[source],))
            name = canonical_function_name(func)
            node.meta.update(scope="", run=self._run(), function=name if name in NOT_OPS else "dir", kind="other")
            node.meta["record"] = self.record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Reads of facts are readers of a value, too: what it is made of must not be fused away."""
        frame = self.frames[-1] if self.frames else None
        is_seen = frame is not None and not frame.is_op
        if is_seen and canonical_function_name(func) in NOT_OPS:
            self.read_fact(func, args)
        with self._hidden.showing([args, kwargs or {}] if is_seen else None):
            return super().__torch_function__(func, types, args, kwargs)

    def _note_hidden_read(self, tensor: Tensor) -> None:
        """Code that no function shows reads a value: it gets real ones."""
        if tensor in self._nodes and not (self.frames and self.frames[-1].is_op):
            self._nodes[tensor].meta["read_unseen"] = True

    def module_begins(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook."""
        with torch._C.DisableTorchFunction():  # what is asked here is not asked by the model
            self._begin_module(module, args, kwargs)

    def module_ends(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook; also called when the forward raised."""
        with torch._C.DisableTorchFunction():
            self._end_module(module, args, output)

    def _begin_module(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        is_inside_op = bool(self.frames) and self.frames[-1].is_op
        frame = self.enter(module)
        if is_inside_op:
            return
        if frame.is_op:
            inputs = tensors_in([args, kwargs])
            writes = bool(inputs) and may_overwrite(module.forward, args, kwargs)
            shared = self._others_in_memory(inputs[0]) if writes else []
            self._pending.append(((self._as_nodes(args), self._as_nodes(kwargs)), shared))
        else:
            self.num_runs += 1
            self._runs.append(self.num_runs)

    def _end_module(self, module: nn.Module, args: Any, output: Any) -> None:
        is_op = bool(self.frames) and self.frames[-1].module is module and self.frames[-1].is_op
        self.leave(module)
        if self.frames and self.frames[-1].is_op:
            return
        if not is_op:
            self._runs.pop()
            return
        given, shared = self._pending.pop()
        path = self._paths[id(module)]
        outer = next((f.module for f in reversed(self.frames) if not f.is_op), self.model)
        node = self._add("call_module", path, given, path, self._paths.get(id(outer), ""))
        if any(isinstance(value, PackedSequence) for value in args):
            node.meta["float_reason"] = "its input is a PackedSequence: runs in float"
        self._give(node, output)
        if shared:
            self._writes.append((node, shared))

    def _add(self, kind: str, target: Any, given: tuple[Any, Any], path: str, scope: str) -> fx.Node:
        node = self.graph.create_node(kind, target, *given)
        node.meta.update(scope=scope, run=self._run(), record=self.record, path=path, call=self._calls[path])
        node.meta["source"] = user_line()
        self._calls[path] += 1
        return node

    def _run(self) -> int:
        return self._runs[-1] if self._runs else 0

    def _add_input(self, name: str, value: Any) -> None:
        if not tensors_in(value):
            return
        node = self.graph.create_node("placeholder", name, name=name)
        node.meta.update(scope="", run=0, record=self.record, path=f"input {name}", call=0)
        self._give(node, value)

    def _give(self, node: fx.Node, value: Any) -> None:
        """Say which tensors a node made; those in a nest get nodes of their own that pick them."""
        node.meta["kind"] = _kind(value)
        if isinstance(value, Tensor):
            self._nodes[value] = node
            return
        items: Any = value.items() if isinstance(value, dict) else enumerate(value or ()) if _is_nest(value) else ()
        for key, item in items:
            if not tensors_in(item):
                continue
            picked = self.graph.call_function(operator.getitem, (node, key))
            picked.meta.update({name: node.meta[name] for name in ("scope", "run", "record")}, function="getitem", k=0)
            picked.meta.update(path=f"{node.meta.get('path')} item {key}", call=node.meta.get("call", 0))
            self._give(picked, item)

    def _as_nodes(self, value: Any) -> Any:
        return map_aggregate(_unpacked(value), lambda leaf: self._node_of(leaf) if isinstance(leaf, Tensor) else leaf)

    def _node_of(self, tensor: Tensor) -> fx.Node:
        if tensor in self._nodes:
            found: fx.Node = self._nodes[tensor]
            return found
        path = self._owned.get(id(tensor))
        if path is not None:
            if path not in self._attributes:
                self._attributes[path] = self.graph.create_node("get_attr", path)
                self._attributes[path].meta.update(path=path, call=0)
            node = self._attributes[path]
        else:  # a constant that the code made, or the result of something that no torch function shows
            is_constant = tensor in self._constants
            node = self.graph.create_node("placeholder", "constant" if is_constant else "unknown")
            self._num_constants += 1  # the same in every run that goes the same way
            node.meta.update(constant=is_constant, path=f"constant {self._num_constants}", call=0)
            self._nodes[tensor] = node
        is_number = bool(node.meta.get("constant")) and tensor.dim() == 0
        node.meta.update(scope="", run=self._run(), record=self.record, kind="int" if is_number else _kind(tensor))
        return node

    def _is_activation(self, tensor: Tensor) -> bool:
        """Whether functions of a tensor belong to the run: not those of buffers and other constants."""
        if tensor in self._nodes:
            return not self._nodes[tensor].meta.get("constant", False)
        return isinstance(tensor, nn.Parameter) or (id(tensor) not in self._owned and tensor not in self._constants)

    def _others_in_memory(self, target: Any) -> list[fx.Node]:
        """Nodes of other live tensors in the memory that is about to be overwritten, and of the target itself."""
        if not isinstance(target, Tensor):
            return []
        with torch._C.DisableTorchFunction():
            place = _storage(target)
            others = [t for t in self._nodes if t is not target and place is not None and _storage(t) == place]
        nodes = [self._nodes[t] for t in others]
        return [self._node_of(target), *nodes] if nodes else []

    def _mark_shared_memory(self) -> None:
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for write, (target, *others) in self._writes:
            if any(order[user] > order[write] for other in others for user in other.users):
                write.meta["writes"] = True
                for node in (write, target, *others):
                    node.meta["shares_memory"] = True


def record_runs(model: nn.Module, runs: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> fx.Graph:
    """The graph of one or several runs of a model; a run that goes the same way as one before it adds nothing.

    Args:
        model: float model in eval; random numbers that it draws do not count.
        runs: positional and keyword arguments of each run.
    """
    graph, known, outputs = fx.Graph(), set(), []
    recorder = RunRecorder(model, graph)
    for args, kwargs in runs:
        before = set(graph.nodes)
        with torch.random.fork_rng():
            output = recorder.run(args, kwargs)
        added = [node for node in graph.nodes if node not in before]
        way = _way(added)
        if way in known:
            for node in reversed(added):
                graph.erase_node(node)
            continue
        known.add(way)
        outputs.append(output)
    graph.output(tuple(node.args[0] for node in outputs))
    for node in outputs:
        graph.erase_node(node)
    return graph


def _way(nodes: list[fx.Node]) -> tuple[Any, ...]:
    """What ran in a run, and who read whose result."""
    number = {node: i for i, node in enumerate(nodes)}
    return tuple(
        (n.meta.get("path"), n.meta.get("call"), tuple(number.get(s) for s in n.all_input_nodes), n.meta.get("kind"))
        for n in nodes
    )


@contextmanager
def _hooked(recorder: RunRecorder) -> Iterator[None]:
    handles = []
    try:
        for module in recorder.model.modules():
            if not _is_inside_leaf(recorder, module):
                begins, ends, is_op = recorder.module_begins, recorder.module_ends, is_leaf(module)
                # what an op's own hooks call belongs to the code around it
                handles.append(module.register_forward_pre_hook(begins, prepend=not is_op, with_kwargs=True))
                handles.append(module.register_forward_hook(ends, prepend=is_op, with_kwargs=True, always_call=True))
        yield
    finally:
        recorder.frames.clear()
        for handle in handles:
            handle.remove()


def _is_inside_leaf(recorder: RunRecorder, module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) and not is_leaf(module)


def _returned(*_: Any) -> None:
    """Stands for the end of a run."""


def _fact(*_: Any) -> None:
    """Stands for a read of a shape, a dtype or a value."""


def _unpacked(value: Any) -> Any:
    """A nest with packed sequences as the tuples that they are; a graph cannot make one out of nodes."""
    if isinstance(value, PackedSequence):
        return tuple(value)
    if type(value) in (tuple, list):
        return type(value)(_unpacked(item) for item in value)
    return {key: _unpacked(item) for key, item in value.items()} if type(value) is dict else value


def _is_nest(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "float" if value.is_floating_point() else "int"
    return "tensors" if tensors_in(value) else "other"


def _storage(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return None
