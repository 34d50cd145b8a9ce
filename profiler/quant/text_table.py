"""Tables as text: grids, left aligned, that names with line breaks or bars in them cannot break."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_UNSAFE = re.compile(r"[\\|\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A grid with one line per row.

    Args:
        head: headings.
        rows: as many cells each; what is not text is printed with `str`.

    Returns:
        Text without a line break at its end. Cells hold no bar, so that splitting a line at `|` gives them back;
        `cell_text` says how characters are written that would break the table.
    """
    cells = [[cell_text(str(cell)) for cell in row] for row in [head, *rows]]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(head))]
    thin, thick = (f"+{'+'.join(mark * (width + 2) for width in widths)}+" for mark in "-=")
    lines = [thin]
    for number, row in enumerate(cells):
        padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        lines += [f"| {' | '.join(padded)} |", thin if number else thick]
    return "\n".join(lines)


def cell_text(text: str) -> str:
    r"""Text on one line and without bars, as Python would write it in a string: `\n`, `\x7c`.

    >>> cell_text("a|b")
    'a\\x7cb'
    """
    return _UNSAFE.sub(lambda found: r"\x7c" if found[0] == "|" else repr(found[0])[1:-1], text)


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
