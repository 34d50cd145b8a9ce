"""The files of a setter: the log of its changes, and the dtypes that every op's ports got."""

from __future__ import annotations

import os
import pprint
from pathlib import Path
from typing import Any

import torch
from torch import nn

from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.setters.ports import FLOAT, OUTPUT, WEIGHT
from profiler.quant.setters.session import Change
from profiler.quant.setters.setter import QconfigSetter
from profiler.quant.swap import actual_dtype

CHANGELOGS, DTYPES, DTYPES_AS_CODE = "qconfig_changelogs.txt", "qconfig_dtypes.pt", "qconfig_dtypes.py"
_NO_CHANGES = "no template changed anything"


def write_qconfig_logs(
    setter: QconfigSetter, out_dir: str | os.PathLike[str], prepared: nn.Module | None = None
) -> list[Path]:
    """Write what a setter did in its last prepare.

    Args:
        setter: the setter, after it has been called.
        out_dir: folder of the files; made if there is none.
        prepared: the prepared model: where it is not as the setter left it, that is logged and its own dtypes are
            written.

    Returns:
        Paths of `qconfig_changelogs.txt` (a line per change: template, op, port, before -> after, reason),
        `qconfig_dtypes.pt` (a mapping for `ModuleNameTemplate`) and `qconfig_dtypes.py` (the same to read).
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [str(change) for change in [*setter.changes, *_late_changes(setter, prepared)]] or [_NO_CHANGES]
    if setter.refusals:
        lines += ["", "not done:", *(str(refusal) for refusal in setter.refusals)]
    dtypes = qconfig_dtypes(setter, prepared)
    paths = [folder / name for name in (CHANGELOGS, DTYPES, DTYPES_AS_CODE)]
    paths[0].write_text("\n".join(lines) + "\n", "utf-8")
    torch.save(dtypes, paths[1])
    header = '"""Dtypes of the ports of every op; ModuleNameTemplate(dtypes) sets them again."""\n\n'
    paths[2].write_text(f"{header}dtypes = {pprint.pformat(dtypes, width=110, sort_dicts=False)}\n", "utf-8")
    return paths


def qconfig_dtypes(setter: QconfigSetter, prepared: nn.Module | None = None) -> dict[str, dict[str, Any]]:
    """Dtypes (and thresholds) by op and port; a mapping for `ModuleNameTemplate`. See `OpSettings` for inputs."""
    actual = _actual_dtypes(prepared)
    found: dict[str, dict[str, Any]] = {}
    for settings in setter.settings:
        found_out = actual.get(settings.path, {})
        dtypes = {port: found_out.get(port, dtype) for port, dtype in settings.dtypes.items()}
        thresholds = {port: t for port, t in settings.thresholds.items() if dtypes[port] != FLOAT}
        found[settings.op] = {"dtype": dtypes, "threshold": thresholds} if thresholds else dtypes
    return found


def _late_changes(setter: QconfigSetter, prepared: nn.Module | None) -> list[Change]:
    """Ports of the prepared model that are not as the templates left them."""
    actual = _actual_dtypes(prepared)
    changes = []
    for settings in setter.settings:
        for port, dtype in actual.get(settings.path, {}).items():
            if prepared is not None and settings.dtypes.get(port, dtype) != dtype:  # a table's weight is its output
                qconfig = prepared.get_submodule(settings.path).__dict__.get("qconfig")
                reason = getattr(qconfig, "fallback_reason", "") or "it runs in float"
                changes.append(Change("prepare", settings.op, port, settings.dtypes[port], dtype, reason))
    return changes


def _actual_dtypes(prepared: nn.Module | None) -> dict[str, dict[str, str]]:
    """Dtypes of the ports of prepared ops, by path."""
    found = {}
    for path, module in [] if prepared is None else prepared.named_modules(remove_duplicate=False):
        if hasattr(module, "to_integer"):
            weight = getattr(module, "weight_fake_quant", None)
            output = {OUTPUT: actual_dtype(module)}
            found[path] = {**output, WEIGHT: weight.dtype} if isinstance(weight, FakeQuantize) else output
    return found
