"""Follows one forward of any eager model and reports each op call: leaf modules and torch functions alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiler.capture.source import calling_line
from profiler.quant.calls import CallTracker, FunctionCall, crosses_boundaries
from profiler.quant.modules import Identity, is_leaf, type_name
from profiler.quant.naming import call_name, op_name
from profiler.quant.ops.functional import tensors_in
from profiler.quant.overwriting import may_overwrite

_PRODUCER = "_profiler_producer"


@dataclass(frozen=True)
class Slot:
    """Stands for the i-th tensor in the arguments of an op that may run again."""

    index: int


@dataclass(frozen=True)
class Rerun:
    """How to run an op again on other tensors: its function, and its arguments with slots for tensors."""

    func: Callable[..., Any]
    args: Any
    kwargs: Any

    def __call__(self, tensors: list[Tensor]) -> Any:
        result = self.func(*_fill(self.args, tensors), **_fill(self.kwargs, tensors))
        return tensors[0] if result is None and tensors else result


@dataclass(frozen=True)
class OpCall:
    """One op call, as it happened. Tensors are the live ones: reduce them before the callback returns."""

    name: str
    op_name: str
    call: int
    type_name: str
    method: str
    module: nn.Module | None
    inputs: list[Tensor]
    outputs: list[Tensor]
    producers: tuple[str | None, ...]
    rerun: Rerun
    source: str
    is_pass_through: bool
    overwrites: bool


@dataclass
class _Pending:
    name: str
    live: list[Tensor]
    inputs: list[Tensor]
    producers: tuple[str | None, ...]
    rerun: Rerun
    source: str
    overwrites: bool


class Recorder(CallTracker):
    """Hooks a model for the time of a `with recording(...)` block and calls `on_call` after each op call.

    Args:
        model: any module.
        on_call: gets each `OpCall`.
        before_call: gets the input tensors of each op that may overwrite them, before it runs.
        extra_leaves: paths of modules that count as one op.
        known: names of op calls whose source line is not looked up.

    Attributes:
        called: how often each module ran.
        current: the op that began last.
        own_error: what our own measuring raised, if anything; the model is not to blame then.
    """

    def __init__(
        self,
        model: nn.Module,
        on_call: Callable[[OpCall], None],
        before_call: Callable[[list[Tensor]], None] | None = None,
        extra_leaves: frozenset[str] = frozenset(),
        known: Container[str] = (),
    ) -> None:
        super().__init__()
        self.model, self.on_call, self.before_call = model, on_call, before_call
        self.extra_leaves, self.known = extra_leaves, known
        self.names = {id(m): n for n, m in model.named_modules()}
        self.called: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.current = ""
        self.own_error: Exception | None = None
        self._token = object()  # tensors that outlive a forward keep the name of their producer in it
        self._pending: list[_Pending] = []

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function called by a module's own code and report it."""
        inputs = tensors_in([args, kwargs])
        if not inputs:
            return call.func(*args, **kwargs)
        name = call.op_name(self.names.get(id(call.module), ""))
        pending = self._begin(name, inputs, call.func, args, kwargs)
        result = call.func(*args, **kwargs)
        self._end(pending, None, f"torch.{call.name}", "", result)
        return result

    def module_begins(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook."""
        fqn = self.names[id(module)]
        is_inside_op = bool(self.frames) and self.frames[-1].is_op
        is_op = fqn in self.extra_leaves or is_leaf(module)
        self.called[fqn] += not is_inside_op
        self.enter(module, fqn, is_op=is_op)
        if is_op and not is_inside_op:
            inputs = tensors_in([args, kwargs])
            self._pending.append(self._begin(op_name(fqn), inputs, module.forward, args, kwargs))

    def module_ends(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook; also called when the forward raised."""
        is_op = bool(self.frames) and self.frames[-1].module is module and self.frames[-1].is_op
        self.leave(module)
        is_inside_op = bool(self.frames) and self.frames[-1].is_op
        if not is_op or is_inside_op or not self._pending:
            return
        pending = self._pending.pop()
        if output is None:  # it raised, or gives nothing
            return
        method = args[0] if args and isinstance(args[0], str) else ""
        self._end(pending, module, type_name(module), method, output)

    def producer_of(self, tensor: Tensor) -> str | None:
        """Name of the op call of this forward that made a tensor, or None."""
        made_by = getattr(tensor, _PRODUCER, None)
        return made_by[1] if made_by is not None and made_by[0] is self._token else None

    def _begin(self, name: str, inputs: list[Tensor], func: Any, args: Any, kwargs: Any) -> _Pending:
        self.current = name
        overwrites = may_overwrite(func, args, kwargs)
        if self.before_call is not None and overwrites:
            with self._measuring():
                self.before_call(inputs)
        producers = tuple(self.producer_of(t) for t in inputs)
        counter = iter(range(len(inputs)))
        rerun = Rerun(func, _slots(args, counter), _slots(kwargs, counter))
        saved = [t.clone() for t in inputs] if overwrites else inputs
        is_known = call_name(name, self.calls[name]) in self.known
        source = "" if is_known else calling_line()
        return _Pending(name, inputs, saved, producers, rerun, source, overwrites)

    def _end(self, pending: _Pending, module: nn.Module | None, kind: str, method: str, result: Any) -> None:
        # x[i] = y gives nothing: what it wrote to is its output
        outputs = pending.live[:1] if result is None and pending.overwrites else tensors_in(result)
        if not outputs:
            return
        call = self.calls[pending.name]
        self.calls[pending.name] += 1
        name = call_name(pending.name, call)
        passes = isinstance(module, (nn.Identity, nn.Dropout)) and any(o is i for o in outputs for i in pending.live)
        if not passes:
            for tensor in outputs:
                setattr(tensor, _PRODUCER, (self._token, name))
        event = OpCall(
            name=name,
            op_name=pending.name,
            call=call,
            type_name=kind,
            method=method,
            module=module,
            inputs=pending.inputs,
            outputs=outputs,
            producers=pending.producers,
            rerun=pending.rerun,
            source=pending.source,
            is_pass_through=passes or isinstance(module, Identity),
            overwrites=pending.overwrites,
        )
        with self._measuring():
            self.on_call(event)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Our own computing inside hooks is not part of the model: no function mode sees it, its errors are ours."""
        try:
            with torch._C.DisableTorchFunction():
                yield
        except Exception as error:
            self.own_error = error
            raise


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Install the recorder's hooks and function mode; both are gone afterwards, also after an error."""
    handles = []
    try:
        for module in recorder.model.modules():
            first = not crosses_boundaries(module)
            handles.append(module.register_forward_pre_hook(recorder.module_begins, prepend=first, with_kwargs=True))
            handles.append(module.register_forward_hook(recorder.module_ends, with_kwargs=True, always_call=True))
        with recorder:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _slots(value: Any, counter: Iterator[int]) -> Any:
    if isinstance(value, Tensor):
        return Slot(next(counter))
    if isinstance(value, dict):
        return {k: _slots(v, counter) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_slots(v, counter) for v in value]
        return _rebuild(value, items)
    return value


def _fill(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Slot):
        return tensors[value.index]
    if isinstance(value, dict):
        return {k: _fill(v, tensors) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return _rebuild(value, [_fill(v, tensors) for v in value])
    return value


def _rebuild(like: Any, items: list[Any]) -> Any:
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)._make(items)  # type: ignore[attr-defined]  # a PackedSequence checks what it is made from
    return tuple(items) if isinstance(like, tuple) else items
