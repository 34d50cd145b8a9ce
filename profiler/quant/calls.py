"""Follows a running forward: which module runs, and the k-th call of which function happens in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from profiler.quant.modules import is_leaf
from profiler.quant.naming import NOT_OPS, canonical_function_name, parse_generated


@dataclass
class Frame:
    """One running module: how often it has called each function so far. Inside an op nothing is counted."""

    module: nn.Module
    is_op: bool
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class FunctionCall:
    """One torch function called by the code of a module."""

    func: Callable[..., Any]
    name: str
    k: int
    module: nn.Module


class CallTracker(TorchFunctionMode):
    """Counts the torch functions that each module's own code calls.

    `enter` and `leave` are told of every module's forward (by hooks). Functions that run inside an op, and reads such
    as `x.shape`, are not ops. Subclasses override `call_function`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []

    def enter(self, module: nn.Module, name: str = "", *, is_op: bool | None = None) -> Frame:
        """A module's forward begins; `name` is its attribute path, of which generated names are understood."""
        is_inside_op = bool(self.frames) and self.frames[-1].is_op
        parsed = parse_generated(name.rpartition(".")[2])
        if parsed is not None and self.frames:
            counts = self.frames[-1].counts
            counts[parsed[0]] = max(counts[parsed[0]], parsed[1] + 1)
        frame = Frame(module, is_inside_op or (is_leaf(module) if is_op is None else is_op))
        self.frames.append(frame)
        return frame

    def leave(self, module: nn.Module) -> None:
        """A module's forward ended, well or by an error; frames that an error left behind go too."""
        if any(frame.module is module for frame in self.frames):
            while self.frames.pop().module is not module:
                pass

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count the call if it belongs to a module's own code, then run it."""
        kwargs = kwargs or {}
        frame = self.frames[-1] if self.frames else None
        if frame is None or frame.is_op:
            return func(*args, **kwargs)
        name = canonical_function_name(func)
        if name in NOT_OPS:
            return func(*args, **kwargs)
        k = frame.counts[name]
        frame.counts[name] += 1
        return self.call_function(FunctionCall(func, name, k, frame.module), args, kwargs)

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one counted function."""
        return call.func(*args, **kwargs)
