"""Which op calls may change their input: what was saved of it must be copied first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from profiler.quant.modules import is_leaf
from profiler.quant.ops.functional import FunctionOp

_WRITERS = ("__setitem__", "__delitem__", "__set__")


def may_overwrite(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call may change the tensors it is given.

    Known writers are in-place modules, `x.add_(y)`, `x += y`, `x[i] = y`, `inplace=True` (also by position) and
    `out=`. A module that counts as one op but is neither torch.nn's nor ours, a scripted block say, may do anything.

    Args:
        func: torch function, tensor method, or bound `forward` of a module.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    owner = getattr(func, "__self__", None)
    if isinstance(owner, FunctionOp):
        kwargs = {**owner.bound, **kwargs}
        if owner.func is not None:
            return may_overwrite(owner.func, args, kwargs)
    if isinstance(owner, nn.Module):
        is_known = is_leaf(owner) and not type(owner).__module__.startswith("torch.jit.")
        writes = getattr(owner, "inplace", False) or getattr(owner, "overwrites_input", False) or kwargs.get("inplace")
        return bool(writes) or not is_known
    name = getattr(func, "__name__", "")
    is_operator = name.startswith("__i") and name != "__invert__"
    if name in _WRITERS or is_operator or (name.endswith("_") and not name.endswith("__")):
        return True
    if kwargs.get("inplace") or kwargs.get("out") is not None:
        return True
    position = _inplace_position(func)
    return position is not None and len(args) > position and bool(args[position])


@lru_cache(maxsize=1024)
def _inplace_position(func: Callable[..., Any]) -> int | None:
    """Position of the argument `inplace` of a Python function such as `F.relu`, or None."""
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None
