"""Networks with weights, data and a metric, from a folder of loader modules."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

Batch = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Loader:
    """A module with `load() -> (model.eval(), [batch, ...])`, `metric(model) -> float` and `METRIC`, what it says.

    A batch is a tuple for `model(*batch)` or a dict for `model(**batch)`.
    """

    name: str
    module: ModuleType

    @property
    def says(self) -> str:
        """What the metric is, one line."""
        return str(getattr(self.module, "METRIC", ""))

    def load(self) -> tuple[nn.Module, list[Batch]]:
        """The model in eval and its calibration batches."""
        model, batches = self.module.load()
        return model, list(batches)

    def metric(self, model: nn.Module) -> float:
        """The loader's number of a model; higher is better."""
        with torch.no_grad():
            return float(self.module.metric(model))


def loader_names(folder: Path) -> list[str]:
    """Names of the modules of a folder that may be loaders: those without a leading underscore that define `load`.

    Raises:
        FileNotFoundError: there is no such folder, or no such module in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--dir {folder}: there is no such folder; give one with a loader module per network")
    found = [p.stem for p in sorted(folder.glob("*.py")) if p.name[0] != "_" and "def load(" in p.read_text("utf-8")]
    if not found:
        raise FileNotFoundError(f"--dir {folder}: no module in it defines load(); see docs/real_models.md")
    return found


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules of the folder can be imported inside; afterwards they are forgotten."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if _is_in(sys.modules[name], folder):
                del sys.modules[name]


def import_loader(name: str) -> Loader:
    """The loader of that name from the folder that is importable now."""
    return Loader(name, importlib.import_module(name))


def run(model: nn.Module, batch: Batch) -> Any:
    """One forward without gradients."""
    with torch.no_grad():
        return model(**batch) if isinstance(batch, dict) else model(*batch)


def values_of(batch: Batch) -> Sequence[Any]:
    """The arguments of a batch in order."""
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


def _is_in(module: ModuleType | None, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and folder.resolve() in Path(file).resolve().parents
