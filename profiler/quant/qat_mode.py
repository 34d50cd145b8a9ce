"""Whether fusion folds a batch norm at once, or keeps it live during QAT and folds it at convert."""

from __future__ import annotations

from enum import Enum

from profiler.errors import ConfigError


class QATMode(Enum):
    """What fusion does with a batch norm."""

    FuseBN = "folded into the weight when fused"
    WithBN = "live during QAT, folded at convert"


_mode = QATMode.FuseBN


def set_qat_mode(mode: QATMode) -> None:
    """Choose what later calls of `fuse_modules`, `fuse_fx` and `prepare_qat_fx` do with batch norms.

    Raises:
        ConfigError: `mode` is no QATMode.
    """
    global _mode
    if not isinstance(mode, QATMode):
        raise ConfigError(f"QAT mode {mode!r} is unknown; use QATMode.FuseBN or QATMode.WithBN")
    _mode = mode


def get_qat_mode() -> QATMode:
    """The present mode; FuseBN unless set."""
    return _mode
