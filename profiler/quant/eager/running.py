"""Which eagerly prepared model runs in this thread, and where in it."""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

from profiler.quant.calls import CallTracker

FQN_ATTRIBUTE = "quant_fqn"


class Running(threading.local):
    """The tracker that follows this thread's forward, or None."""

    tracker: Any = None


RUNNING = Running()


def running_root() -> nn.Module | None:
    """The module whose call began the running forward, or None."""
    tracker: CallTracker | None = RUNNING.tracker
    return tracker.frames[0].module if tracker is not None and tracker.frames else None


def running_module() -> str:
    """Path of the innermost prepared module that runs, or "" where none does."""
    tracker: CallTracker | None = RUNNING.tracker
    frames = tracker.frames if tracker is not None else []
    return next((fqn_of(frame.module) for frame in reversed(frames) if FQN_ATTRIBUTE in frame.module.__dict__), "")


def fqn_of(module: nn.Module) -> str:
    """Path of a prepared module; its class name where it is the root."""
    return module.__dict__.get(FQN_ATTRIBUTE) or type(module).__name__
