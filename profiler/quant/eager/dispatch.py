"""Gives quantizers to the plain functions (`+`, torch.cat, ...) of an eagerly prepared model while it runs."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from torch import nn
from torch.overrides import _get_current_function_mode

from profiler.errors import UnsupportedOpError
from profiler.quant.calls import CallTracker, FunctionCall
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.naming import generated_name, join, parse_generated
from profiler.quant.ops.functional import make_fake_quant_function, overwrite
from profiler.quant.ops.registry import Family, spec_of_function
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, first_qtensor, user_line
from profiler.quant.states import join_state

FQN_ATTRIBUTE = "quant_fqn"
_LOCAL = threading.local()


class EagerDispatch(CallTracker):
    """Sends functions on quantized values to `_generated_<function>_<k>` in the calling module.

    Args:
        caller: Python frame of the call that this follows.
    """

    def __init__(self, caller: FrameType) -> None:
        super().__init__()
        self.caller = caller

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one function, through its generated module where it makes values that need an own scale."""
        spec = spec_of_function(call.name)
        has_own_scale = spec is not None and spec.family in (Family.FUNCTION, Family.COMPOSITE)
        if not has_own_scale or first_qtensor([args, kwargs]) is None:
            return call.func(*args, **kwargs)
        name = generated_name(call.name, call.k)
        module = call.module._modules.get(name)
        if module is None:
            module = self._create(call, name)
            # for those who follow the model: its input is written after the call
            module.__dict__["overwrites_input"] = _is_in_place(call)
        result = module(*args, **kwargs)
        _write_back(call, args, result)
        return result

    def _create(self, call: FunctionCall, name: str) -> nn.Module:
        parent, root = call.module, self.frames[0].module
        qconfig = parent.__dict__.get("qconfig")
        where = f"{call.name} in {getattr(parent, FQN_ATTRIBUTE, type(parent).__name__)}, called at {user_line()}"
        if not isinstance(qconfig, QConfig):
            raise UnsupportedOpError(
                f"{where}: got quantized values where nothing is configured (qconfig = None, or a converted model took "
                "a path that was never calibrated); put a DeQuantStub before it, or calibrate with data that takes "
                "this path"
            )
        module = generate(parent, call.name, name, qconfig)
        for fake_quant in module.modules():
            if isinstance(fake_quant, FakeQuantize):
                join_state(
                    fake_quant, root, join(join(getattr(parent, FQN_ATTRIBUTE, ""), name), "activation_post_process")
                )
        return module


def generate(parent: nn.Module, function: str, name: str, qconfig: QConfig) -> nn.Module:
    """Create the module that stands in a function's place and register it in the calling module."""
    module = make_fake_quant_function(parent, function, {}, "", qconfig)
    parent.add_module(name, module)
    install_hooks(module)
    return module


def install_hooks(module: nn.Module) -> None:
    """Let the dispatcher of this thread follow the module's forward, also when it raises."""
    module.register_forward_pre_hook(_enter, prepend=True)
    module.register_forward_hook(_leave, always_call=True)


def create_from_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: create the generated modules whose keys a checkpoint holds (they appear on the first forward)."""
    for key in list(state_dict):
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :].split(".", 1)[0]
        parsed = parse_generated(name)
        qconfig = module.__dict__.get("qconfig")
        if parsed is not None and name not in module._modules and isinstance(qconfig, QConfig):
            generate(module, parsed[0], name, qconfig)


def _enter(module: nn.Module, args: Any) -> None:
    tracker = getattr(_LOCAL, "tracker", None)
    if tracker is not None and _is_root(module) and not _is_running(tracker.caller):
        _drop(tracker)
        tracker = None
    if tracker is None:
        tracker = _LOCAL.tracker = EagerDispatch(sys._getframe(1))
        tracker.__enter__()  # type: ignore[no-untyped-call]
    tracker.enter(module)


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    tracker = getattr(_LOCAL, "tracker", None)
    if tracker is None:
        return
    tracker.leave(module)
    if not tracker.frames:
        _LOCAL.tracker = None
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


def _write_back(call: FunctionCall, args: tuple[Any, ...], result: Any) -> None:
    """In-place spellings (`x += y`, `x.add_(y)`) also change the tensor they were called on.

    Raises:
        UnsupportedOpError: `x.add_(y)` whose result has another dtype or shape than x.
    """
    name = getattr(call.func, "__name__", "")
    is_method = name.endswith("_") and not name.startswith("__")
    target = args[0] if args else None
    if not isinstance(target, QTensor) or not _is_in_place(call):
        return
    if not overwrite(target, result) and is_method:
        raise UnsupportedOpError(
            f"{name} in {getattr(call.module, FQN_ATTRIBUTE, '')}, called at {user_line()}: the result does not fit "
            f"into the {target.qdtype} tensor it was called on; write x = x + y instead"
        )


def _is_in_place(call: FunctionCall) -> bool:
    name = getattr(call.func, "__name__", "")
    return name.startswith("__i") or (name.endswith("_") and not name.startswith("__"))
