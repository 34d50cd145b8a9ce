"""nan_check: the first op that makes NaN or Inf, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.errors import ConfigError, ModelError
from profiler.quant.calls import CallTracker, FunctionCall
from profiler.quant.modules import is_leaf
from profiler.quant.naming import call_name, op_name
from profiler.quant.ops.functional import tensors_in
from profiler.quant.qtensor import QTensor, to_plain, user_line


@contextmanager
def nan_check(model: nn.Module, where: str = "forward") -> Iterator[None]:
    """Inside the with block, raise at the first op of the model whose result holds NaN or Inf.

    Args:
        model: any stage; its hooks are gone afterwards, also after an error.
        where: "forward": results of modules and functions; "backward": gradients that modules pass on.

    Raises:
        ConfigError: `where` is something else.
        ModelError: in the block, with the op's name, its call number, and whether its inputs were finite.
    """
    if where not in ("forward", "backward"):
        raise ConfigError(f"nan_check: where is {where!r}; use 'forward' or 'backward'")
    watch = _watch_forward if where == "forward" else _watch_backward
    names = {module: name for name, module in model.named_modules()}
    handles: list[Any] = []
    try:
        with watch(names, handles):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _FunctionCheck(CallTracker):
    """Looks at the results of the functions that the modules' own code calls."""

    def __init__(self, names: dict[nn.Module, str], report: Callable[[str, Any, Any], None]) -> None:
        super().__init__()
        self.names, self.report = names, report

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it and look."""
        result = call.func(*args, **kwargs)
        self.report(call.op_name(self.names.get(call.module, "")), [args, kwargs], result)
        return result


@contextmanager
def _watch_forward(names: dict[nn.Module, str], handles: list[Any]) -> Iterator[None]:
    calls: Counter[str] = Counter()

    def report(name: str, inputs: Any, result: Any) -> None:
        number = calls[name]
        calls[name] += 1
        if _is_finite(result):
            return
        came = "its inputs are finite" if _is_finite(inputs) else "its inputs hold some already"
        raise ModelError(f"nan_check: {call_name(name, number)} made NaN or Inf; {came}; called at {user_line()}")

    tracker = _FunctionCheck(names, report)

    def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        tracker.leave(module)
        if is_leaf(module) and not (tracker.frames and tracker.frames[-1].is_op):
            report(op_name(names[module]), [args, kwargs], result)

    def enter(module: nn.Module, args: Any) -> None:
        tracker.enter(module, names[module])

    for module in names:
        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    with tracker:
        yield


@contextmanager
def _watch_backward(names: dict[nn.Module, str], handles: list[Any]) -> Iterator[None]:
    """Hooks on the tensors that leaf modules take and give: full backward hooks refuse results written in place."""
    running: list[_Call] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = _Call(op_name(names[module]), handles)
        running.append(call)
        return call.begin(args, kwargs, is_in_place=_is_in_place(module))

    def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        call = running.pop()
        if result is not None:  # None: it raised
            call.end(result)

    for module in names:
        if is_leaf(module) and not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
    yield


class _Call:
    """One call of a module: what came to it and what it passed on in the backward pass.

    Args:
        name: op name of the module.
        handles: takes the hooks that are made.
    """

    def __init__(self, name: str, handles: list[Any]) -> None:
        self.name, self.handles = name, handles
        self.came_finite = True
        self._operands: list[Tensor] = []
        self._aliases: dict[int, Tensor] = {}
        self._makers: list[Any] = []

    def begin(self, args: Any, kwargs: Any, *, is_in_place: bool) -> Any:
        """Arguments with an alias for each operand: its gradient is this call's share of the operand's gradient.

        A module that writes over its operand gets the operand itself.
        """
        if not is_in_place:
            args, kwargs = tree_map(self._alias, args), tree_map(self._alias, kwargs)
        with torch._C.DisableTorchFunction():
            self._operands = [t for t in tensors_in([args, kwargs]) if t.requires_grad]
            self._makers = [t.grad_fn for t in self._operands]
        return args, kwargs

    def end(self, result: Any) -> None:
        """Watch, unless an operand was only handed through."""
        with torch._C.DisableTorchFunction():
            results = [t for t in tensors_in(result) if t.requires_grad]
            if any(t.grad_fn is maker for t in results for maker in self._makers):
                return
            self.handles += [maker.register_prehook(self._pass_on) for maker in self._makers if maker is not None]
            self.handles += [t.register_hook(self._come) for t in results]  # type: ignore[no-untyped-call]

    def _alias(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        with torch._C.DisableTorchFunction():
            if not value.requires_grad:
                return value
            if id(value) not in self._aliases:
                alias = to_plain(value).view_as(to_plain(value))
                self._aliases[id(value)] = value.like(alias) if isinstance(value, QTensor) else alias
            return self._aliases[id(value)]

    def _come(self, grad: Tensor) -> None:
        self.came_finite = self.came_finite and _is_finite(grad)

    def _pass_on(self, grads: tuple[Tensor | None, ...]) -> None:
        if self.came_finite and not _is_finite(grads):
            raise ModelError(f"nan_check: the backward pass of {self.name} made NaN or Inf")


def _is_in_place(module: Any) -> bool:
    return bool(getattr(module, "inplace", False) or getattr(module, "bound", {}).get("inplace", False))


def _is_finite(values: Any) -> bool:
    with torch._C.DisableTorchFunction(), torch.no_grad():
        floats = [t for t in tensors_in(_plain(values)) if t.is_floating_point()]
        return all(bool(torch.isfinite(t).all()) for t in floats)


def _plain(values: Any) -> Any:
    if isinstance(values, (tuple, list)):
        return [_plain(value) for value in values]
    if isinstance(values, dict):
        return [_plain(value) for value in values.values()]
    return to_plain(values) if isinstance(values, Tensor) else None
