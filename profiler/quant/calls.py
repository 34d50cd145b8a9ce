"""Follows a running forward: which module runs, and the k-th call of which function happens in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from profiler.quant.modules import is_leaf
from profiler.quant.naming import (
    NOT_OPS,
    block_of_generated,
    canonical_function_name,
    generated_name,
    join,
    join_blocks,
    op_name,
    parse_generated,
)

CROSSES = "quant_crosses"


@dataclass
class Frame:
    """One running module, or a named block of its code: how often it has called each function so far.

    Inside an op nothing is counted.
    """

    module: nn.Module
    is_op: bool
    counts: Counter[str] = field(default_factory=Counter)
    block: str = ""


@dataclass(frozen=True)
class FunctionCall:
    """One torch function called by the code of a module, in the named block `block` of it ("" for none)."""

    func: Callable[..., Any]
    name: str
    k: int
    module: nn.Module
    block: str = ""

    @property
    def attribute(self) -> str:
        """Name that the module in this function's place has, or gets, in the calling module."""
        return generated_name(self.name, self.k, self.block)

    def op_name(self, fqn: str) -> str:
        """Name of this op; `fqn` is the path of the calling module."""
        return op_name(join(fqn, self.attribute))


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
        if parsed is not None and self.frames and not block_of_generated(name.rpartition(".")[2]):
            counts = self.frames[-1].counts
            counts[parsed[0]] = max(counts[parsed[0]], parsed[1] + 1)
        frame = Frame(module, is_inside_op or (is_leaf(module) if is_op is None else is_op))
        self.frames.append(frame)
        return frame

    def leave(self, module: nn.Module) -> None:
        """A module's forward ended, well or by an error; frames that an error left behind go too."""
        if any(frame.module is module for frame in self.frames):
            while (frame := self.frames.pop()).module is not module or frame.block:
                pass

    def enter_block(self, name: str) -> Frame | None:
        """A named block of the running module's code begins; functions in it are counted from 0."""
        if not self.frames:
            return None
        outer = self.frames[-1]
        self.frames.append(Frame(outer.module, outer.is_op, block=join_blocks(outer.block, name)))
        return self.frames[-1]

    def leave_block(self, frame: Frame | None) -> None:
        """The block of `enter_block` ended, well or by an error."""
        if any(running is frame for running in self.frames):
            while self.frames.pop() is not frame:
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
            return self.read(func, name, args, kwargs)
        k = frame.counts[name]
        frame.counts[name] += 1
        return self.call_function(FunctionCall(func, name, k, frame.module, frame.block), args, kwargs)

    def read(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read a fact about a tensor: no op."""
        return func(*args, **kwargs)

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one counted function."""
        return call.func(*args, **kwargs)


@contextmanager
def named_block(name: str) -> Iterator[None]:
    """Let whoever follows the running forward name the functions of this block by it: see `profiler.quant.naming`."""
    followers: list[Any] = [mode for mode in _get_current_function_mode_stack() if hasattr(mode, "enter_block")]  # type: ignore[no-untyped-call]
    entered = [(follower, follower.enter_block(name)) for follower in followers]
    try:
        yield
    finally:
        for follower, frame in reversed(entered):
            follower.leave_block(frame)


def crosses_boundaries(module: nn.Module) -> bool:
    """Whether a module's own hooks hand its arguments through quantizers: who follows it looks after them."""
    return bool(module.__dict__.get(CROSSES))
