"""Resolves a qconfig_dict: "" < module_type < module_name < the module's own qconfig."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from profiler.errors import ConfigError
from profiler.quant.modules import class_name, is_leaf
from profiler.quant.naming import join, op_name
from profiler.quant.qconfig import QConfig, check_qconfig_value, propagate_qconfig
from profiler.quant.swap import QuantEffect
from profiler.quant.target import fit_qconfigs_to_target

HYBRID_ATTRIBUTE = "quant_hybrid"
_KEYS = ("", "module_type", "module_name")


def apply_qconfig_dict(model: nn.Module, qconfig_dict: dict[str, Any] | None) -> list[QuantEffect]:
    """Give every module (generated ones too) its qconfig.

    Args:
        model: model with generated modules.
        qconfig_dict: `{"": q, "module_type": [(T, q)], "module_name": {n: q} or [(n, q)]}`; a name may be a module
            path or an op name such as `block.add_0`; `...` or an empty value means no entry.

    Returns:
        One effect per entry: the ops it governs, or that it matched or changed nothing, with the nearest names.

    Raises:
        ConfigError: unknown key, or a value that is no QConfig.
    """
    given = qconfig_dict or {}
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise ConfigError(
            f"qconfig_dict has unknown keys {unknown}; the legal ones are '', 'module_type', 'module_name'"
        )
    names = _pairs(given.get("module_name"))
    types = _pairs(given.get("module_type"))
    by_name = {name: check_qconfig_value(q, f"module_name {name}") for name, q in names}
    by_type = [(cls, check_qconfig_value(q, f"module_type {cls}")) for cls, q in types]
    entries = _Entries()
    with_own = {id(m) for m in model.modules() if "qconfig" in m.__dict__}
    for path, module in model.named_modules():
        is_governed = id(module) not in with_own
        for cls, q in by_type:
            if _is_a(module, cls):
                entries.match(_type_label(cls), module, q, is_governed=is_governed)
        for name in {path: None, op_name(path): None}:
            if name in by_name:
                entries.match(_name_label(name), module, by_name[name], is_governed=is_governed)
    if "qconfig" not in model.__dict__:
        model.__dict__["qconfig"] = check_qconfig_value(given.get("") or None, "qconfig_dict['']")
    propagate_qconfig(model)
    fit_qconfigs_to_target(model)
    ops = entries.ops_of(model, with_own)
    known = [op_name(path) for path, _ in model.named_modules() if path]
    kinds = sorted({class_name(m) for m in model.modules()})
    return [
        *(_effect(_name_label(n), q, ops, entries, n, known) for n, q in by_name.items()),
        *(_effect(_type_label(cls), q, ops, entries, _type_name(cls), kinds) for cls, q in by_type),
    ]


def apply_hybrid_dict(model: nn.Module, hybrid_dict: dict[str, Any] | None) -> list[QuantEffect]:
    """Take the qconfig from the ops that are to run in float.

    Args:
        model: model with its qconfigs.
        hybrid_dict: `{"module_type": [T], "module_name": [n]}`.

    Returns:
        Effects of entries that matched nothing.

    Raises:
        ConfigError: unknown key.
    """
    given = hybrid_dict or {}
    unknown = [key for key in given if key not in _KEYS[1:]]
    if unknown:
        raise ConfigError(f"hybrid_dict has unknown keys {unknown}; the legal ones are 'module_type', 'module_name'")
    wanted: list[Any] = [*given.get("module_type", ()), *given.get("module_name", ())]
    used = set()
    for path, module in model.named_modules():
        matching = [w for w in wanted if _is_a(module, w) or w in (path, op_name(path))]
        used |= set(matching)
        for child in module.modules() if matching else ():
            child.__dict__["qconfig"] = None
            child.__dict__[HYBRID_ATTRIBUTE] = True
    known = [op_name(path) for path, _ in model.named_modules() if path]
    return [nothing_matched(_type_name(w), "torch.float32", known) for w in wanted if w not in used]


@dataclass
class _Entries:
    """Which entry of the qconfig_dict gave each module its qconfig; a later match wins."""

    matched: set[str] = field(default_factory=set)
    label_of: dict[int, str] = field(default_factory=dict)

    def match(self, label: str, module: nn.Module, qconfig: QConfig | None, *, is_governed: bool) -> None:
        self.matched.add(label)
        if is_governed:
            module.__dict__["qconfig"] = qconfig
            self.label_of[id(module)] = label

    def ops_of(self, model: nn.Module, with_own: set[int]) -> dict[str, list[str]]:
        """Names of the ops that each entry governs: their own or their nearest ancestor's."""
        found: dict[str, list[str]] = {}

        def walk(module: nn.Module, path: str, label: str) -> None:
            label = "" if id(module) in with_own else self.label_of.get(id(module), label)
            if is_leaf(module):
                found.setdefault(label, []).append(op_name(path))
                return
            for name, child in module.named_children():
                walk(child, join(path, name), label)

        walk(model, "", "")
        return found


def _is_a(module: nn.Module, cls: Any) -> bool:
    return isinstance(cls, type) and isinstance(module, cls)


def _name_label(name: str) -> str:
    return f"module_name {name}"


def _type_name(cls: Any) -> str:
    return cls.__name__ if isinstance(cls, type) else str(cls)


def _type_label(cls: Any) -> str:
    return f"module_type {_type_name(cls)}"


def _effect(
    label: str, qconfig: QConfig | None, ops: dict[str, list[str]], entries: _Entries, name: str, known: list[str]
) -> QuantEffect:
    requested = "None" if qconfig is None else qconfig.activation_dtype
    if label not in entries.matched:
        return nothing_matched(name, requested, known)
    governed = ops.get(label, [])
    if not governed:
        reason = "changed nothing: a qconfig attribute or an entry of higher priority governs the ops it matches"
        return QuantEffect(name, requested, "no effect", reason)
    return QuantEffect(label, requested, "applied", f"to {len(governed)} ops: {', '.join(governed)}")


def _pairs(entries: Any) -> list[tuple[Any, Any]]:
    if not entries or entries is ...:
        return []
    items: Iterable[Any] = entries.items() if isinstance(entries, dict) else entries
    return [(key, value) for key, value in items if value is not ...]


def nothing_matched(name: str, requested: str, known: list[str]) -> QuantEffect:
    """Effect of an entry whose name is no op's; says the nearest of the known names."""
    near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
    return QuantEffect(name, requested, "no effect", f"matched nothing; the nearest names are {near}")
