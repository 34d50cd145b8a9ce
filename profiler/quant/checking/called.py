"""How often each op module runs in one forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import is_leaf, type_name
from profiler.quant.naming import op_name
from profiler.quant.observers import ObserverBase


@dataclass(frozen=True)
class CalledCount:
    """How often a module ran in one forward: 0 is unused, more than 1 is shared."""

    name: str
    type_name: str
    count: int
    alias_of: str


def called_counts(
    model: nn.Module, called: Mapping[str, int], extra_leaves: frozenset[str] = frozenset()
) -> tuple[CalledCount, ...]:
    """A row for each op module; one object under two names counts on the first.

    Args:
        model: any stage.
        called: path of a module -> runs.
        extra_leaves: paths of modules that count as one op.
    """
    rows = []
    first: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (FakeQuantize, ObserverBase)) or not (is_leaf(module) or name in extra_leaves):
            continue
        if _is_inside_op(model, name, extra_leaves):
            continue
        alias = first.setdefault(id(module), name)
        count = called.get(name, 0) if alias == name else 0
        rows.append(CalledCount(op_name(name), type_name(module), count, "" if alias == name else op_name(alias)))
    return tuple(rows)


def _is_inside_op(model: nn.Module, name: str, extra_leaves: frozenset[str]) -> bool:
    while name:
        name = name.rpartition(".")[0]
        if name in extra_leaves or is_leaf(model.get_submodule(name)):
            return True
    return False
