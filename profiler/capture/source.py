"""The user's source line behind an op call."""

from __future__ import annotations

import linecache
import os
import sys
from pathlib import Path

import torch

_OWN = (str(Path(torch.__file__).parent) + os.sep, str(Path(__file__).resolve().parent.parent) + os.sep)


def calling_line() -> str:
    """`file:line: text` of the innermost frame outside torch and this package; "" in generated code."""
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith(_OWN):
            if filename.startswith("<"):
                return ""
            text = linecache.getline(filename, frame.f_lineno).strip()
            return f"{_short(filename)}:{frame.f_lineno}: {text}"
        back = frame.f_back
        if back is None:
            return ""
        frame = back
    return ""


def _short(filename: str) -> str:
    """Path below site-packages or the current folder, else the last two parts: home folders are nobody's business."""
    path = Path(filename)
    if "site-packages" in path.parts:
        return str(Path(*path.parts[path.parts.index("site-packages") + 1 :]))
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(Path(*path.parts[-2:]))
