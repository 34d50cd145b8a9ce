"""Gives quantizers to the plain functions (`+`, torch.cat, ...) of an eagerly prepared model while it runs."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

from profiler.errors import UnsupportedOpError
from profiler.quant.calls import CallTracker, FunctionCall
from profiler.quant.eager.aliases import Aliases
from profiler.quant.eager.boundaries import FLOAT_RESULTS, float_function, has_boundary, has_float_result
from profiler.quant.eager.running import FQN_ATTRIBUTE, RUNNING, fqn_of, running_module
from profiler.quant.naming import is_reflected, join, op_name, parse_generated
from profiler.quant.ops.functional import keeps_scale, make_fake_quant_function, overwrite
from profiler.quant.ops.registry import Family, spec_of_function
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import (
    QTensor,
    first_qtensor,
    has_handler,
    has_real_facts,
    name_modules_with,
    real_fact,
    to_float,
    user_line,
)
from profiler.quant.states import join_state, named_fake_quants
from profiler.quant.swap import EFFECTS_ATTRIBUTE, QuantEffect, effect_of
from profiler.quant.switches import add_cast

name_modules_with(running_module)
_NEW_SCALE = "x[i] = y may need a larger scale than that of x: runs in float between automatic boundaries"
DISPATCH_ATTRIBUTE = "quant_dispatch"  # of the root of a model that another front end made


class EagerDispatch(CallTracker):
    """Sends functions on quantized values to `_generated_<function>_<k>` in the calling module.

    Args:
        caller: Python frame of the call that this follows.
    """

    def __init__(self, caller: FrameType) -> None:
        super().__init__()
        self.caller = caller
        self.aliases = Aliases()

    def read(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Facts that depend on the dtype are those of the real values."""
        if name in ("dtype", "is_floating_point") and args and has_real_facts(args[0]):
            return real_fact(args[0], name)
        return func(*args, **kwargs)

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one function, through its generated module where it makes values that need an own scale."""
        if first_qtensor([args, kwargs]) is None:
            return call.func(*args, **kwargs)
        self.aliases.require_fresh([args, kwargs], overwrites=call.name == "setitem")
        module = call.module._modules.get(call.attribute)
        if module is None and _needs_new_scale(call, args) and _is_prepared(call.module):
            module = self._create(call, _NEW_SCALE)
        if module is None and _has_own_scale(call.name) and not _keeps_scale(call.name, args, kwargs):
            if _gives_float(call.module) and not _is_prepared(call.module):
                return call.func(*to_float(args), **to_float(kwargs))
            module = self._create(call, "")
        if module is None:
            result = self._run_without_scale(call, args, kwargs)
            self.aliases.note(call.name, args, result)
            return result
        return run_generated(module, call, args, kwargs)

    def _run_without_scale(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function that keeps the scale or gives no quantized values; what cannot be done on codes runs in float."""
        try:
            return call.func(*args, **kwargs)
        except UnsupportedOpError as error:
            if _gives_float(call.module):
                return call.func(*to_float(args), **to_float(kwargs))
            if not _is_prepared(call.module):
                result = None if is_in_place(call) else call.func(*to_float(args), **to_float(kwargs))
                if result is None or has_float_result(result):
                    raise
                return result  # booleans or integers, which need no scale
            reason = str(error) if has_handler(call.name) else f"no quantized form of {call.name}"
        return run_generated(
            self._create(call, f"{reason}: runs in float between automatic boundaries"), call, args, kwargs
        )

    def _create(self, call: FunctionCall, float_reason: str) -> nn.Module:
        parent, root = call.module, self.frames[0].module
        qconfig = parent.__dict__.get("qconfig")
        where = f"{call.name} in {fqn_of(parent)}, called at {user_line()}"
        if not isinstance(qconfig, QConfig):
            raise UnsupportedOpError(
                f"{where}: got quantized values where nothing is configured (qconfig = None, or a converted model took "
                "a path that was never calibrated); put a DeQuantStub before it, call prepare_qat(hybrid=True), or "
                "calibrate with data that takes this path"
            )
        name = call.attribute
        path = join(getattr(parent, FQN_ATTRIBUTE, ""), name)
        module = generate(parent, call.name, name, qconfig, is_float=bool(float_reason))
        # for those who follow the model: its input is written after the call
        module.__dict__["overwrites_input"] = is_in_place(call)
        for inner, fake_quant in named_fake_quants(module):
            join_state(fake_quant, root, join(path, inner), module)
        effect = effect_of(path, module, qconfig)
        if float_reason:
            effect = QuantEffect(op_name(path), effect.requested, "torch.float32", float_reason)
        parent.__dict__.get(EFFECTS_ATTRIBUTE, []).append(effect)
        return module


def generate(parent: nn.Module, function: str, name: str, qconfig: QConfig, *, is_float: bool) -> nn.Module:
    """Create the module that stands in a function's place and register it in the calling module.

    Args:
        parent: the calling module.
        function: canonical function name.
        name: attribute name of the new module.
        qconfig: the calling module's.
        is_float: the function has no quantized form and gets a boundary.
    """
    module = (
        float_function(function, parent, qconfig)
        if is_float
        else make_fake_quant_function(parent, function, {}, "", qconfig)
    )
    add_cast(module, qconfig)
    module.__dict__[FQN_ATTRIBUTE] = join(getattr(parent, FQN_ATTRIBUTE, ""), name)
    parent.add_module(name, module)
    install_hooks(module)
    return module


def install_hooks(module: nn.Module, *, own_hooks_inside: bool = True) -> None:
    """Let the dispatcher of this thread follow the module's forward, also when it raises.

    Args:
        module: part of a prepared model.
        own_hooks_inside: what the module's own hooks call counts as called by it, not by the code around it.
    """
    module.register_forward_pre_hook(_enter, prepend=own_hooks_inside)
    module.register_forward_hook(_leave, prepend=not own_hooks_inside, always_call=True)


def create_from_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: create the generated modules whose keys a checkpoint holds (they appear on the first forward)."""
    for key in list(state_dict):
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :].split(".", 1)[0]
        parsed = parse_generated(name)
        qconfig = module.__dict__.get("qconfig")
        if parsed is not None and name not in module._modules and isinstance(qconfig, QConfig):
            generate(module, parsed[0], name, qconfig, is_float=not _has_own_scale(parsed[0]))


def _enter(module: nn.Module, args: Any) -> None:
    tracker = RUNNING.tracker
    if tracker is not None and _is_root(module) and not _is_running(tracker.caller):
        _drop(tracker)
        tracker = None
    if tracker is None:
        dispatch: type[EagerDispatch] = module.__dict__.get(DISPATCH_ATTRIBUTE, EagerDispatch)
        tracker = RUNNING.tracker = dispatch(sys._getframe(1))
        tracker.__enter__()  # type: ignore[no-untyped-call]
    tracker.enter(module)
    tracker.aliases.require_fresh(args)


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    tracker = RUNNING.tracker
    if tracker is None:
        return
    tracker.leave(module)
    if not tracker.frames:
        RUNNING.tracker = None
        tracker.__exit__(None, None, None)


def _is_root(module: nn.Module) -> bool:
    return module.__dict__.get(FQN_ATTRIBUTE) == ""


def _is_running(frame: FrameType) -> bool:
    """Whether a Python frame is on this thread's stack."""
    running: FrameType | None = sys._getframe(1)
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


def _drop(tracker: EagerDispatch) -> None:
    """Remove what a forward that was interrupted (Ctrl-C runs no forward hooks) left behind."""
    tracker.frames.clear()
    if _get_current_function_mode() is tracker:  # type: ignore[no-untyped-call]
        tracker.__exit__(None, None, None)


def _has_own_scale(function: str) -> bool:
    spec = spec_of_function(function)
    return spec is not None and spec.family in (Family.FUNCTION, Family.COMPOSITE)


def _keeps_scale(function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    spec = spec_of_function(function)
    return spec is not None and keeps_scale(spec, args, kwargs)


def _needs_new_scale(call: FunctionCall, args: tuple[Any, ...]) -> bool:
    """Whether `x[i] = y` may write values that the scale of x does not reach."""
    if call.name != "setitem" or not isinstance(args[0], QTensor) or _gives_float(call.module):
        return False
    value = args[2]
    return value.scale is not args[0].scale if isinstance(value, QTensor) else not _is_zero(value)


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _is_prepared(module: nn.Module) -> bool:
    return isinstance(module.__dict__.get("qconfig"), QConfig)


def _gives_float(module: nn.Module) -> bool:
    """Whether functions of this module's code on quantized values give plain results (hybrid, or activation None)."""
    return bool(module.__dict__.get(FLOAT_RESULTS))


def run_generated(module: Any, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function through the module that stands in its place."""
    if has_boundary(module):
        module.func = set_items if call.name == "setitem" else call.func
    elif is_reflected(call.func) and len(args) > 1:
        args = (args[1], args[0], *args[2:])
    result = module(*args, **kwargs)
    _write_back(call, args, result)
    return None if call.name == "setitem" else result


def set_items(target: Tensor, index: Any, value: Any) -> Tensor:
    """`target[index] = value` as a function: the target."""
    target[index] = value
    return target


def _write_back(call: FunctionCall, args: tuple[Any, ...], result: Any) -> None:
    """In-place spellings (`x += y`, `x.add_(y)`) also change the tensor they were called on.

    Raises:
        UnsupportedOpError: `x.add_(y)` whose result has another dtype or shape than x.
    """
    name = getattr(call.func, "__name__", "")
    is_method = (name.endswith("_") and not name.startswith("__")) or call.name == "setitem"
    target = args[0] if args else None
    if not isinstance(target, QTensor) or not is_in_place(call):
        return
    if overwrite(target, result):
        if RUNNING.tracker is not None:
            RUNNING.tracker.aliases.written(target, result, user_line())
    elif is_method:
        raise UnsupportedOpError(
            f"{name} in {fqn_of(call.module)}, called at {user_line()}: the result does not fit "
            f"into the {target.qdtype} tensor it was called on; write x = x + y instead"
        )


def is_in_place(call: FunctionCall) -> bool:
    """Whether a function overwrites its first argument: `x += y`, `x.add_(y)`, `x[i] = y`."""
    name = getattr(call.func, "__name__", "")
    return name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.startswith("__"))
