"""Symbolic tracing that names every op as the user's code does, and keeps what it cannot trace as a leaf."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from profiler.errors import PrepareError
from profiler.quant.modules import is_leaf
from profiler.quant.naming import canonical_function_name

_LOGGER = logging.getLogger(__name__)
_MAX_RETRIES = 200


@dataclass
class Scope:
    """A module whose forward is being traced."""

    fqn: str
    counts: Counter[str] = field(default_factory=Counter)


class QuantTracer(fx.Tracer):
    """Tracer whose nodes know the calling module and the k of their function in it.

    `node.meta["scope"]` is the fqn of the module whose code made the node; function and method nodes also carry
    `node.meta["function"]` (canonical name) and `node.meta["k"]`.
    """

    def __init__(self, extra_leaves: set[str]) -> None:
        super().__init__()
        self.extra_leaves = extra_leaves
        self.failed: str | None = None
        self._scopes = [Scope("")]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Ops of this core and of torch.nn, and what could not be traced."""
        return module_qualified_name in self.extra_leaves or is_leaf(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a module; remember the innermost one that fails."""
        fqn = self.path_of_module(m)
        if self.is_leaf_module(m, fqn):
            return super().call_module(m, forward, args, kwargs)
        self._scopes.append(Scope(fqn))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = fqn
            raise
        finally:
            self._scopes.pop()

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Create a node with its scope and function name."""
        node = super().create_node(kind, target, *args, **kwargs)
        scope = self._scopes[-1]
        node.meta["scope"] = scope.fqn
        if kind in ("call_function", "call_method"):
            name = canonical_function_name(target)
            node.meta["function"], node.meta["k"] = name, scope.counts[name]
            scope.counts[name] += 1
        return node


@dataclass(frozen=True)
class Traced:
    """A traced graph, and why some modules stayed leaves."""

    graph: fx.Graph
    untraceable: dict[str, str]


def trace(model: nn.Module, leaves: set[str] | None = None) -> Traced:
    """Trace a model; a submodule that cannot be traced stays a leaf, is named, and tracing starts again.

    Args:
        model: any module.
        leaves: paths that must stay leaves.

    Raises:
        PrepareError: the forward of the model itself cannot be traced.
    """
    untraceable: dict[str, str] = {}
    for _ in range(_MAX_RETRIES):
        tracer = QuantTracer({*(leaves or ()), *untraceable})
        try:
            return Traced(tracer.trace(model), untraceable)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            if not tracer.failed or tracer.failed in untraceable:
                raise PrepareError(
                    f"{type(model).__name__}.forward cannot be traced symbolically ({reason}); use the eager "
                    f"front end: put "
                    "QuantStub and DeQuantStub into the model and call prepare_qat"
                ) from error
            untraceable[tracer.failed] = f"cannot be traced symbolically ({reason})"
            _LOGGER.warning("%s %s: it stays in float", tracer.failed, untraceable[tracer.failed])
    raise PrepareError(f"{type(model).__name__}: more than {_MAX_RETRIES} submodules cannot be traced")


class _KindRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["kind"] = "float" if result.is_floating_point() else "int"
        else:
            n.meta["kind"] = "other"
        return result


def record_kinds(model: nn.Module, graph: fx.Graph, args: tuple[Any, ...]) -> None:
    """Run the traced graph once and note for each node whether it is a float tensor ("float"), "int" or "other".

    A module that is in training mode is run in eval: statistics and the user's flags do not change.
    """
    with torch.no_grad():
        _KindRecorder(model, graph=graph).run(*args)
