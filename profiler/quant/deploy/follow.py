"""Follows one forward and says which op is running, so that nodes of a graph get the names of the model's ops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from profiler.quant.calls import CallTracker, FunctionCall, crosses_boundaries
from profiler.quant.modules import is_leaf, type_name
from profiler.quant.naming import call_name, op_name
from profiler.quant.ops.functional import tensors_in
from profiler.quant.qtensor import user_line


@dataclass(frozen=True)
class RunningOp:
    """One op call while it runs.

    Attributes:
        name: op name with its call number: `conv`, `conv(1)`.
        op_name: name that all calls share.
        kind: class path of the module, or `torch.<function>`.
        module: the module, or None for a function.
        args: positional arguments.
        kwargs: keyword arguments.
        source: line of the user's code.
    """

    name: str
    op_name: str
    kind: str
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: str


class OpFollower(CallTracker):
    """Hooks a model for the time of a `with following(...)` block.

    Args:
        model: any module.
        before: told of each op before it runs.
        after: told of each op and its result (None where it raised).
        extra_leaves: paths of modules that count as one op.
    """

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[RunningOp], None],
        after: Callable[[RunningOp, Any], None],
        extra_leaves: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.model, self.before, self.after, self.extra_leaves = model, before, after, extra_leaves
        self.names = {id(m): n for n, m in model.named_modules()}
        self.running: list[RunningOp] = []
        self._calls: Counter[str] = Counter()

    @property
    def scope(self) -> str:
        """Name of the running op; between ops the path of the running module."""
        if self.running:
            return self.running[-1].name
        return self.names.get(id(self.frames[-1].module), "") if self.frames else ""

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function that a module's own code calls, as an op."""
        if not tensors_in([args, kwargs]):
            return call.func(*args, **kwargs)
        name = call.op_name(self.names.get(id(call.module), ""))
        running = self._begin(name, f"torch.{call.name}", None, args, kwargs)
        result = None
        try:
            result = call.func(*args, **kwargs)
        finally:
            self._end(running, result)
        return result

    def module_begins(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook."""
        fqn = self.names[id(module)]
        is_inside_op = bool(self.frames) and self.frames[-1].is_op
        is_op = fqn in self.extra_leaves or is_leaf(module)
        self.enter(module, fqn, is_op=is_op)
        if is_op and not is_inside_op:
            self._begin(op_name(fqn), type_name(module), module, args, kwargs)

    def module_ends(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook; also called when the forward raised."""
        is_op = bool(self.frames) and self.frames[-1].module is module and self.frames[-1].is_op
        self.leave(module)
        is_inside_op = bool(self.frames) and self.frames[-1].is_op
        if is_op and not is_inside_op and self.running:
            self._end(self.running[-1], output)

    def _begin(self, name: str, kind: str, module: nn.Module | None, args: Any, kwargs: Any) -> RunningOp:
        call = self._calls[name]
        self._calls[name] += 1
        running = RunningOp(call_name(name, call), name, kind, module, args, kwargs, user_line())
        self.running.append(running)
        with torch._C.DisableTorchFunction():
            self.before(running)
        return running

    def _end(self, running: RunningOp, result: Any) -> None:
        while self.running and self.running.pop() is not running:
            pass
        with torch._C.DisableTorchFunction():
            self.after(running, result)


@contextmanager
def following(follower: OpFollower) -> Iterator[None]:
    """Install the hooks and the function mode; both are gone afterwards, also after an error."""
    handles = []
    try:
        for module in follower.model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            first = not crosses_boundaries(module)
            handles.append(module.register_forward_pre_hook(follower.module_begins, prepend=first, with_kwargs=True))
            handles.append(module.register_forward_hook(follower.module_ends, with_kwargs=True, always_call=True))
        with follower:
            yield
    finally:
        for handle in handles:
            handle.remove()
