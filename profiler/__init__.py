"""Quantization accuracy profiler for PyTorch.

Public names are loaded on first use, so that reading and rendering a report never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiler.api import model_profiler
    from profiler.profile_report import ProfileReport
    from profiler.quant.checking.check import check_qat_model

__version__ = "0.1.0"
__all__ = ["ProfileReport", "__version__", "check_qat_model", "model_profiler"]

_EXPORTS = {
    "ProfileReport": "profiler.profile_report",
    "check_qat_model": "profiler.quant.checking.check",
    "model_profiler": "profiler.api",
}


if not TYPE_CHECKING:  # a type checker would take every misspelt name for an object

    def __getattr__(name: str) -> object:
        """Imports the module that defines a public name, and keeps the name."""
        if name not in _EXPORTS:
            raise AttributeError(f"module 'profiler' has no attribute {name!r}; public names: {', '.join(__all__)}")
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
