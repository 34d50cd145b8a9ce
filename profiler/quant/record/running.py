"""Runs a model that was prepared from a record: its own forward in Python, its ops between their quantizers."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode, _pop_mode, _push_mode
from torch.utils._pytree import tree_map

from profiler.errors import UnsupportedOpError
from profiler.quant.calls import CROSSES, FunctionCall
from profiler.quant.eager.dispatch import EagerDispatch, generate, is_in_place, run_generated
from profiler.quant.eager.running import FQN_ATTRIBUTE, RUNNING
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.fx.weighted_functions import WEIGHTED_FUNCTIONS
from profiler.quant.modules import Identity
from profiler.quant.naming import join, op_name
from profiler.quant.ops.constants import is_constant
from profiler.quant.ops.functional import keeps_scale, spec_of_form, tensors_in
from profiler.quant.ops.registry import Family, OpSpec, spec_of_function
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, first_qtensor, has_handler, to_float
from profiler.quant.record.become import become_float, become_float_together, written_back
from profiler.quant.record.deferred import (
    Deferred,
    DeferredProduct,
    is_fused_add,
    is_fused_elsewhere,
    operands_of_fused_add,
    resolved,
)
from profiler.quant.record.plan import CallPlan, RunPlan
from profiler.quant.record.results import plain_result
from profiler.quant.states import join_state, named_fake_quants
from profiler.quant.stubs import FakeQuantStub, QuantStub
from profiler.quant.swap import EFFECTS_ATTRIBUTE, QuantEffect, fake_quant_form

PLAN_ATTRIBUTE = "quant_run_plan"
ROLE_ATTRIBUTE = "quant_role"
_COPIES_DATA = frozenset("tensor as_tensor asarray".split())  # they ask no argument for its class
_STUBBED = "_quant_stubbed"
_OTHER_PATH = "no recorded run called it: runs in float"
_LATE_STUB = re.compile(r"(.+)_input_\d+_activation_post_process")


@dataclass(frozen=True)
class _Stubbed:
    """What a float value became behind stubs, in one forward, while nobody wrote into it."""

    tracker: RecordedDispatch
    version: int
    by_stub: dict[str, Tensor] = field(default_factory=dict)


class RecordedDispatch(EagerDispatch):
    """Follows one forward: functions go through the quantizers of their names, values cross at the planned stubs.

    Args:
        caller: Python frame of the call that this follows.
    """

    def __init__(self, caller: FrameType) -> None:
        super().__init__(caller)
        self.calls: Counter[str] = Counter()
        self.open: list[tuple[CallPlan, list[FakeQuantize]]] = []
        self._stubbed: list[Tensor] = []
        self._is_paused = False
        self._observes: bool | None = None

    @property
    def root(self) -> nn.Module:
        """The model that runs."""
        return self.frames[0].module

    @property
    def plan(self) -> RunPlan:
        """What was recorded of it."""
        plan: RunPlan = self.root.__dict__[PLAN_ATTRIBUTE]
        return plan

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one function, through its module where it has one."""
        if call.name in _COPIES_DATA:
            return _run_float(call, args, kwargs)
        module = call.module._modules.get(call.attribute)
        path = join(call.module.__dict__.get(FQN_ATTRIBUTE, ""), call.attribute)
        target = args[0] if args and isinstance(args[0], Tensor) and is_in_place(call) else None
        if isinstance(target, QTensor) and path not in self.plan.recorded and self._leaves_memory_float(target):
            return _run_float(call, args, kwargs)
        if isinstance(module, Identity):  # fused away
            return module(args[0] if args else kwargs["input"])
        if is_fused_elsewhere(module, args):
            module = None
        if module is None:
            args, kwargs = resolved(args), resolved(kwargs)
            if first_qtensor([args, kwargs]) is None:
                return call.func(*args, **kwargs)
            module = self._late_module(call, path, args, kwargs)
        if module is None:
            plan = self.next_plan(path)
            result = self._run_plain(call, args, kwargs)
            self.aliases.note(call.name, args, result)
            if plan.gives_plain and isinstance(target, QTensor) and result is target:
                become_float(target)
            return to_float(result) if plan.gives_plain else result
        if call.name in WEIGHTED_FUNCTIONS:  # its weights are the module's
            args, kwargs = (args[0] if args else kwargs["input"],), {}
        result = run_generated(module, call, args, kwargs)
        return written_back(target, result) if target is not None else result

    def pause(self) -> None:
        """An op begins: the functions that it calls are its own, and need not be looked at."""
        if _get_current_function_mode() is self:  # type: ignore[no-untyped-call]
            _pop_mode()  # type: ignore[no-untyped-call]
            self._is_paused = True

    def resume(self) -> None:
        """The op ended, well or by an error."""
        if self._is_paused:
            self._is_paused = False
            _push_mode(self)  # type: ignore[no-untyped-call]

    def _leaves_memory_float(self, target: QTensor) -> bool:
        """A write that no record had: where other names see it, they and it become real values."""
        self.aliases.require_no_copy(target)
        others = self.aliases.in_memory_of(target) if target.ch_axis < 0 else []
        if others:
            become_float_together([target, *others])
        return bool(others)

    def next_plan(self, path: str) -> CallPlan:
        """Plan of the call of an op that begins now."""
        number = self.calls[path]
        self.calls[path] += 1
        return self.plan.of_call(path, number)

    def through_stub(self, value: Tensor, path: str) -> Tensor:
        """A float value behind a QuantStub; the same value is quantized (and observed) once."""
        known: _Stubbed | None = getattr(value, _STUBBED, None)
        if known is None or known.tracker is not self or known.version != _version(value):
            known = _Stubbed(self, _version(value))
            setattr(value, _STUBBED, known)
            self._stubbed.append(value)
        if path not in known.by_stub:
            known.by_stub[path] = self.root.get_submodule(path)(value)
        return known.by_stub[path]

    def note_unrecorded(self, path: str, requested: str = "") -> None:
        """Name an op that no recorded run had."""
        plan = self.plan
        if path in plan.recorded or path in plan.unrecorded:
            return
        plan.unrecorded[path] = None
        effects = self.root.__dict__.get(EFFECTS_ATTRIBUTE)
        if effects is not None:
            effects.append(QuantEffect(op_name(path), requested, "torch.float32", _OTHER_PATH))

    def __exit__(self, *args: Any) -> None:
        """The forward ended, well or by an error: let go of what was quantized in it."""
        for value in self._stubbed:
            if hasattr(value, _STUBBED):
                delattr(value, _STUBBED)
        self._stubbed.clear()
        super().__exit__(*args)  # type: ignore[no-untyped-call]

    def late_stub(self, path: str, number: int) -> str | None:
        """Path of a stub for an argument that was quantized in the record and is plain now; made while observing."""
        name = f"{path.replace('.', '_')}_input_{number}_activation_post_process"
        if name in self.root._modules:
            return name
        qconfig = self.root.get_submodule(path).__dict__.get("qconfig")
        if not self._is_observing() or not isinstance(qconfig, QConfig) or qconfig.activation is None:
            return None
        self._join(_add_stub(self.root, name, qconfig), name)
        return name

    def _late_module(self, call: FunctionCall, path: str, args: Any, kwargs: Any) -> nn.Module | None:
        """A quantizer for a function that no record had; made while observing."""
        spec = spec_of_function(call.name)
        has_own_scale = spec is not None and spec.family in (Family.FUNCTION, Family.COMPOSITE)
        if spec is None or not has_own_scale or path in self.plan.recorded or keeps_scale(spec, args, kwargs):
            return None
        qconfig = call.module.__dict__.get("qconfig")
        if not self._is_observing() or not isinstance(qconfig, QConfig) or qconfig.activation is None:
            self.note_unrecorded(path)
            return None
        module = generate(call.module, call.name, call.attribute, qconfig, is_float=False)
        self._join(module, path)
        install(module, path)
        return module

    def _join(self, module: nn.Module, path: str) -> None:
        for inner, fake_quant in named_fake_quants(module):
            join_state(fake_quant, self.root, join(path, inner), module)

    def _is_observing(self) -> bool:
        """Asked once in a forward, however many calls no record had: it walks the whole model."""
        if self._observes is None:
            muted = [fake_quant for _, fake_quants in self.open for fake_quant in fake_quants]
            on = (fq for _, fq in named_fake_quants(self.root) if fq.is_observer_on)
            self._observes = any(fq.training for fq in (*muted, *on))
        return self._observes

    def _run_plain(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function without a scale of its own: on quantized values where it is defined on them, else on real ones."""
        spec = spec_of_function(call.name)
        has_own_scale = spec is not None and spec.family in (Family.FUNCTION, Family.COMPOSITE)
        on_codes = has_handler(call.name) and not (has_own_scale and spec and not keeps_scale(spec, args, kwargs))
        if on_codes and not is_in_place(call):
            try:
                return call.func(*args, **kwargs)
            except UnsupportedOpError:
                pass
        if is_in_place(call) and isinstance(args[0], QTensor):
            if call.name == "masked_fill":
                call.func(*args, **kwargs)
                return args[0]
            if _moves_or_drops(call, spec):
                with torch._C.DisableTorchFunction():
                    return call.func(*args, **kwargs)
            become_float(args[0])
        return _run_float(call, args, kwargs)


def _run_float(call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunction():
        args, kwargs = to_float(resolved(args)), to_float(resolved(kwargs))
    return call.func(*args, **kwargs)


def _moves_or_drops(call: FunctionCall, spec: OpSpec | None) -> bool:
    """Whether an in-place function may change values or codes alike: `x.relu_()`, `x.squeeze_()`."""
    return call.name != "setitem" and spec is not None and spec.name in ("relu", "shape", "dropout")


def stubs_from_keys(root: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: make the late stubs whose keys a checkpoint holds."""
    by_name = {path.replace(".", "_"): module for path, module in root.named_modules()}
    default = next((q for m in root.modules() if isinstance(q := m.__dict__.get("qconfig"), QConfig)), None)
    for key in list(state_dict):
        name = key[len(prefix) :].partition(".")[0]
        found = _LATE_STUB.fullmatch(name)
        if not key.startswith(prefix) or found is None or name in root._modules:
            continue
        owner = by_name.get(found[1])
        qconfig = default if owner is None else owner.__dict__.get("qconfig", default)
        if isinstance(qconfig, QConfig) and qconfig.activation is not None:
            _add_stub(root, name, qconfig)


def _add_stub(root: nn.Module, name: str, qconfig: QConfig) -> nn.Module:
    stub = QuantStub.automatic()
    stub.train(root.training)
    quantizing = fake_quant_form(stub, qconfig)
    root.add_module(name, quantizing)
    install(quantizing, name)
    return quantizing


def install(module: nn.Module, path: str) -> None:
    """Hooks of an op of a recorded model: its arguments cross the planned boundaries."""
    module.__dict__.update({FQN_ATTRIBUTE: path, CROSSES: True})
    module.register_forward_pre_hook(_cross, with_kwargs=True)
    module.register_forward_hook(_finish, prepend=True, always_call=True)


def finish_forward(root: nn.Module, args: Any, output: Any) -> Any:
    """Post-hook of the model: what leaves it is plain."""
    tracker = RUNNING.tracker
    if isinstance(tracker, RecordedDispatch) and len(tracker.frames) == 1:
        with torch._C.DisableTorchFunction():
            return plain_result(output)
    return None


def _cross(module: nn.Module, args: Any, kwargs: Any) -> Any:
    tracker = RUNNING.tracker
    if not isinstance(tracker, RecordedDispatch) or (len(tracker.frames) > 1 and tracker.frames[-2].is_op):
        return None
    crossed = _crossed(tracker, module, args, kwargs)
    tracker.pause()
    return crossed


def _crossed(tracker: RecordedDispatch, module: nn.Module, args: Any, kwargs: Any) -> Any:
    path = module.__dict__[FQN_ATTRIBUTE]
    plan = tracker.next_plan(path)
    tracker.open.append((plan, [] if plan.is_read else _muted(module)))
    if (role := module.__dict__.get(ROLE_ATTRIBUTE, "quantized")) == "passes":
        return None
    if is_fused_add(module):
        args, kwargs = operands_of_fused_add(module, args, kwargs)
    args, kwargs = resolved(args), resolved(kwargs)
    if role == "keeps scale":
        return args, kwargs
    if role == "float":
        if first_qtensor([args, kwargs]) is not None:
            tracker.note_unrecorded(path)
        if getattr(module, "inplace", False) and isinstance(args[0], QTensor):
            become_float(args[0])
        with torch._C.DisableTorchFunction():
            return to_float(args), to_float(kwargs)
    return _through_stubs(tracker, module, path, plan, args, kwargs)


def _muted(module: nn.Module) -> list[FakeQuantize]:
    """Let a module observe nothing for now; those of its quantizers that did."""
    observing = [fake_quant for _, fake_quant in named_fake_quants(module) if fake_quant.is_observer_on]
    for fake_quant in observing:
        fake_quant.enable_observer(False)
    return observing


def _through_stubs(
    tracker: RecordedDispatch, module: nn.Module, path: str, plan: CallPlan, args: Any, kwargs: Any
) -> Any:
    """Arguments of a quantized op: values that are plain pass the stubs of this call.

    A function without any quantized argument runs on real values. So does one of which an argument is plain where the
    record had it quantized, unless the model observes: then that argument gets a stub of its own.
    """
    if isinstance(module, FakeQuantStub):
        return args, kwargs
    spec = spec_of_form(module)
    if spec is not None and spec.family is Family.FUNCTION and first_qtensor([args, kwargs]) is None:
        return args, kwargs
    operands = _operands(spec, args, kwargs)
    stubs, number, is_mixed = dict(plan.stubs), -1, False

    def cross(value: Any) -> Any:
        nonlocal number, is_mixed
        if not isinstance(value, Tensor):
            return value
        number += 1
        if isinstance(value, QTensor) or not value.is_floating_point():
            return value
        stub = stubs.get(number)
        if stub is None and id(value) in operands:
            stub = tracker.late_stub(path, number)
        crossed = value if stub is None else tracker.through_stub(value, stub)
        is_mixed = is_mixed or (not isinstance(crossed, QTensor) and id(value) in operands)
        return crossed

    args, kwargs = tree_map(cross, args), tree_map(cross, kwargs)
    if is_mixed:
        with torch._C.DisableTorchFunction():
            return to_float(args), to_float(kwargs)
    return args, kwargs


def _operands(spec: OpSpec | None, args: Any, kwargs: Any) -> set[int]:
    """Identities of the plain float tensors that an op takes quantized: no masks, numbers or constant operands."""
    if spec is None or spec.family not in (Family.GEMM, Family.FUNCTION, Family.COMPOSITE):
        return set()
    plain = dict(spec.plain_arguments)
    given = [value for i, value in enumerate(args) if i not in plain]
    given += [value for name, value in kwargs.items() if name not in plain.values()]
    needed = [t for t in tensors_in(given) if not isinstance(t, QTensor) and t.is_floating_point()]
    if spec.family is Family.FUNCTION:
        needed = [t for t in needed if t.dim() > 0 and t.numel() > 0 and not is_constant(t)]
    return {id(t) for t in needed}


def _finish(module: nn.Module, args: Any, output: Any) -> Any:
    tracker = RUNNING.tracker
    if not isinstance(tracker, RecordedDispatch) or not tracker.open:
        return None
    if len(tracker.frames) > 1 and tracker.frames[-2].is_op:
        return None
    tracker.resume()
    plan, muted = tracker.open.pop()
    for fake_quant in muted:
        fake_quant.enable_observer()
    if isinstance(module, DeferredProduct) and output is not None:
        fused = tracker.root.get_submodule(module.home)
        return Deferred.of(output, module.home, fused)  # type: ignore[arg-type]
    return to_float(output) if plan.gives_plain and output is not None else None


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version
