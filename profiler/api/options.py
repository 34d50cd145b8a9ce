"""Arguments of a run, checked before anything takes time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from profiler.errors import ModelError, ReportError
from profiler.quant.march import get_march, march_or_default, march_set_to

DEFAULT_OUT_DIR = "profiler_out"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """What the caller of `model_profiler` chose."""

    out_dir: Path
    march: str | None = None
    qconfig_dict: Any = None
    frontend: str = "auto"
    batch_process_func: Callable[[Any], Any] | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    num_batches: int = 32
    make_zip: bool = True
    progress: Progress | None = None

    def tell(self, step: str, done: int, total: int) -> None:
        """Report progress, if anybody listens."""
        if self.progress is not None:
            self.progress(step, done, total)

    def arguments(self) -> dict[str, str]:
        """The arguments as text for the report."""
        return {
            "march": str(self.march),
            "num_batches": str(self.num_batches),
            "frontend": self.frontend,
            "qconfig_dict": "default" if self.qconfig_dict is None else repr(self.qconfig_dict),
            "evaluate": getattr(self.evaluate, "__qualname__", str(self.evaluate)),
            "batch_process_func": getattr(self.batch_process_func, "__qualname__", str(self.batch_process_func)),
        }


def eager_module(model: Any) -> nn.Module:
    """The module whose Python code runs op by op: what torch.compile or DataParallel wraps, or the model itself.

    Raises:
        ModelError: not a module, or a scripted or traced one, whose ops cannot be seen.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is {type(model).__name__}; expected an nn.Module (call the class or load it first)")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"model is a {type(model).__name__}, scripted or traced by torch.jit: its ops cannot be seen one by "
            f"one; pass the "
            "Python module that it was made from"
        )
    inner = model.module if isinstance(model, nn.DataParallel) else getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


@contextmanager
def chosen_march(march: str | None) -> Iterator[str]:
    """The march of a run: the caller's, else the one that is set, else BAYES. Gives a note; restores the former one."""
    note = "" if march is not None or get_march() is not None else "no march was set: bayes is assumed"
    with march_set_to(march_or_default(march)):
        yield note


def require_writable(out_dir: Path) -> None:
    """Find out before a long run that the report can be written.

    Raises:
        ReportError: the folder cannot be made or written.
    """
    place = out_dir
    while not place.exists() and place.parent != place:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ReportError(
            f"out_dir {str(out_dir)!r} cannot be written: {place}: {error.strerror or error}; pass another out_dir, "
            "or make it a writable folder"
        ) from error
