"""Symbolic tracing that names every op as the user's code does, and keeps what it cannot trace as a leaf."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from profiler.errors import PrepareError
from profiler.quant.fx.arguments import python_arguments
from profiler.quant.fx.in_place import InPlaceProxy, write_that_is_lost
from profiler.quant.fx.wrapped import register_wrapped, unregister_wrapped
from profiler.quant.modules import is_leaf
from profiler.quant.naming import canonical_function_name, join, join_blocks, op_name, wrapped_name
from profiler.quant.ops.functional import tensors_in
from profiler.quant.qtensor import real_fact, user_line
from profiler.quant.wrapping import code_of, is_method, is_wrapped_class

_LOGGER = logging.getLogger(__name__)
_MAX_RETRIES = 200


@dataclass
class Scope:
    """One run of a module's forward, or of a named block in it, and the functions that it called on constants alone."""

    fqn: str
    number: int
    constant_calls: Counter[str] = field(default_factory=Counter)
    block: str = ""


class QuantTracer(fx.Tracer):
    """Tracer whose nodes know which module's code made them.

    `node.meta["scope"]` is the fqn of that module and `node.meta["run"]` the number of that run of its forward.
    Function and method nodes also carry `node.meta["function"]` (canonical name) and `node.meta["skipped"]`: how often
    the same run had called it before on constants, which leaves no node but counts in the names of ops. Nodes made in a
    named block (`Tracer.dynamic_block`) carry it as `node.meta["block"]`; each entry of it counts as a run.

    Args:
        extra_leaves: paths of modules that stay leaves.
        fixed: arguments of the root's forward that keep these plain Python values.
    """

    def __init__(self, extra_leaves: Collection[str] = (), fixed: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.extra_leaves, self.fixed = extra_leaves, fixed or {}
        self.failed: str | None = None
        self.num_runs = 0
        self.wrapped: dict[str, tuple[Callable[..., Any], nn.Module | None]] = {}
        self._scopes = [Scope("", 0)]
        self._has_default = False

    @property
    def innermost(self) -> Scope:
        """The forward that is being traced."""
        return self._scopes[-1]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Ops of this core and of torch.nn, wrapped classes, and what could not be traced."""
        return module_qualified_name in self.extra_leaves or is_leaf(m) or is_wrapped_class(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a module; remember the innermost one that fails."""
        fqn = self.path_of_module(m)
        if self.is_leaf_module(m, fqn):
            return super().call_module(m, forward, args, kwargs)
        self.num_runs += 1
        self._scopes.append(Scope(fqn, self.num_runs))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = fqn
            raise
        finally:
            self._scopes.pop()

    def call_wrapped(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of code under `wrap`: one node, whose module stands in that whose method, or code, it is."""
        owner = args[0] if is_method(run, args) else None
        scope = self.innermost.fqn if owner is None else self.path_of_module(owner)
        path = join(scope, wrapped_name(code_of(run).name))
        if self.wrapped.setdefault(path, (run, owner))[0] is not run:
            raise PrepareError(f"{op_name(path)}: two wrapped functions have this name; give them different ones")
        return self.create_proxy("call_module", path, args if owner is None else args[1:], kwargs)

    def enter_block(self, name: str) -> Scope:
        """A named block of the code begins."""
        self.num_runs += 1
        outer = self.innermost
        self._scopes.append(Scope(outer.fqn, self.num_runs, block=join_blocks(outer.block, name)))
        return self.innermost

    def leave_block(self, scope: Scope) -> None:
        """It ended, well or by an error."""
        while scope in self._scopes:
            self._scopes.pop()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows `x += y` from `x = x + y`."""
        return InPlaceProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        """A proxy; a fixed argument keeps its placeholder in the signature, but the code gets its value."""
        if kind == "placeholder":
            self._has_default = self._has_default or bool(args)
            args = (None,) if self._has_default and not args and not target.startswith("*") else args
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        return self.fixed[target] if kind == "placeholder" and target in self.fixed else proxy

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Create a node with its scope and function name."""
        node = super().create_node(kind, target, *args, **kwargs)
        node.meta["scope"], node.meta["run"] = self.innermost.fqn, self.innermost.number
        node.meta["source"], node.meta["block"] = user_line(), self.innermost.block
        if kind in ("call_function", "call_method"):
            # a property such as x.T is a function of its own name
            name = canonical_function_name(str(node.args[1]) if target is getattr else target)
            if target is getattr and name == "dtype":
                node.target = real_fact
            node.meta["function"], node.meta["skipped"] = name, self.innermost.constant_calls[name]
        return node


class _ConstantCalls(TorchFunctionMode):
    """Counts the functions that traced code calls on constants: they run at once and leave no node."""

    def __init__(self, tracer: QuantTracer) -> None:
        super().__init__()
        self.tracer = tracer
        self.enter_block, self.leave_block = tracer.enter_block, tracer.leave_block

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves([args, kwargs])):
            self.tracer.innermost.constant_calls[canonical_function_name(func)] += 1
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Traced:
    """A traced graph, and why some modules stayed leaves."""

    graph: fx.Graph
    untraceable: dict[str, str]


def trace(
    model: nn.Module,
    leaves: set[str] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    is_quiet: bool = False,
) -> Traced:
    """Trace a model; a submodule that cannot be traced stays a leaf, is named, and tracing starts again.

    Args:
        model: any module.
        leaves: paths that must stay leaves.
        example_inputs: positional inputs of one forward; those without tensors (None, a flag, a number) are fixed.
        is_quiet: log no warning of what stays a leaf.

    Raises:
        PrepareError: the forward of the model itself cannot be traced.
    """
    untraceable: dict[str, str] = {}
    fixed = python_arguments(model, example_inputs)
    for _ in range(_MAX_RETRIES):
        tracer = QuantTracer({*(leaves or ()), *untraceable}, fixed)
        try:
            with _ConstantCalls(tracer):
                return Traced(_traced_graph(tracer, model), untraceable)
        except Exception as error:
            unregister_wrapped(model, tracer.wrapped)
            reason = _describe(error)
            if not tracer.failed or tracer.failed in untraceable:
                raise PrepareError(
                    f"{type(model).__name__}.forward cannot be traced symbolically ({reason}); record its runs "
                    "(quantize with frontend='auto', or prepare with PrepareMethod.JIT), or use the eager front end: "
                    "put QuantStub and DeQuantStub into the model and call prepare_qat"
                ) from error
            untraceable[tracer.failed] = f"cannot be traced symbolically ({reason})"
            if not is_quiet:
                _LOGGER.warning("%s %s: it stays in float", tracer.failed, untraceable[tracer.failed])
    raise PrepareError(f"{type(model).__name__}: more than {_MAX_RETRIES} submodules cannot be traced")


def _traced_graph(tracer: QuantTracer, model: nn.Module) -> fx.Graph:
    graph = tracer.trace(model)
    register_wrapped(model, tracer.wrapped)
    lost = write_that_is_lost(graph, model)
    if lost is not None:
        tracer.failed = lost[0].meta["scope"] or None
        raise NotImplementedError(lost[1])
    return graph


class _KindRecorder(fx.Interpreter):
    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The next input; `**kwargs` is one input of its own."""
        if str(target).startswith("**"):
            return next(self.args_iter, {})
        return super().placeholder(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and note the kind of its result."""
        result = super().run_node(n)
        n.meta["kind"] = _kind(result)
        return result


def _kind(result: Any) -> str:
    if isinstance(result, torch.Tensor):
        return "float" if result.is_floating_point() else "int"
    return "tensors" if tensors_in(result) else "other"


def record_kinds(model: nn.Module, graph: fx.Graph, args: tuple[Any, ...]) -> None:
    """Run the traced graph once and note for each node what it gives: "float", "int", "tensors" (a nest) or "other".

    The model must be in eval, so that no statistics change.

    Raises:
        PrepareError: the traced graph does not run on these inputs.
    """
    try:
        with torch.no_grad():
            _KindRecorder(model, graph=graph).run(*args)
    except Exception as error:
        raise PrepareError(
            f"{type(model).__name__}: the traced forward does not run on example_inputs ({_describe(error)}), though "
            "the model itself may, because its code depends on values that tracing cannot see; use prepare_qat instead"
        ) from error


def _describe(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
