"""Resolves a qconfig_dict: "" < module_type < module_name < the module's own qconfig."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import nn

from profiler.errors import ConfigError
from profiler.quant.naming import op_name
from profiler.quant.qconfig import QConfig, check_qconfig_value, propagate_qconfig
from profiler.quant.swap import QuantEffect

_KEYS = ("", "module_type", "module_name")


def apply_qconfig_dict(model: nn.Module, qconfig_dict: dict[str, Any] | None) -> list[QuantEffect]:
    """Give every module (generated ones too) its qconfig.

    Args:
        model: model with generated modules.
        qconfig_dict: `{"": q, "module_type": [(T, q)], "module_name": {n: q} or [(n, q)]}`; a name may be a module
            path or an op name such as `block.add_0`; `...` or an empty value means no entry.

    Returns:
        Effects of entries that matched nothing, with the nearest names.

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
    with_own = {id(m) for m in model.modules() if "qconfig" in m.__dict__}
    by_name = {name: check_qconfig_value(q, f"module_name {name}") for name, q in names}
    by_type = [(cls, check_qconfig_value(q, f"module_type {cls}")) for cls, q in types]
    unmatched = set(by_name)
    for path, module in model.named_modules():
        if id(module) in with_own:
            unmatched -= {path, op_name(path)}
            continue
        for cls, q in by_type:
            if isinstance(cls, type) and isinstance(module, cls):
                module.__dict__["qconfig"] = q
        for name in (path, op_name(path)):
            if name in by_name:
                module.__dict__["qconfig"] = by_name[name]
                unmatched.discard(name)
    if "qconfig" not in model.__dict__:
        model.__dict__["qconfig"] = check_qconfig_value(given.get("") or None, "qconfig_dict['']")
    propagate_qconfig(model)
    known = [op_name(path) for path, _ in model.named_modules() if path]
    return [_no_effect(name, by_name[name], known) for name in sorted(unmatched)]


def _pairs(entries: Any) -> list[tuple[Any, Any]]:
    if not entries or entries is ...:
        return []
    items: Iterable[Any] = entries.items() if isinstance(entries, dict) else entries
    return [(key, value) for key, value in items if value is not ...]


def _no_effect(name: str, qconfig: QConfig | None, known: list[str]) -> QuantEffect:
    near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
    requested = "None" if qconfig is None else qconfig.activation_dtype
    return QuantEffect(name, requested, "no effect", f"matched nothing; the nearest names are {near}")
