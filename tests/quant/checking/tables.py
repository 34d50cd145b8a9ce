"""Reads the text of check_qat_model back, as a script of a user would."""

from __future__ import annotations

from profiler.quant.checking.result import SECTIONS

Rows = list[list[str]]


def parse_sections(text: str) -> dict[str, list[Rows]]:
    """Title of each section, in order -> its grids, each with its heading first. Cells are split at every bar."""
    sections: dict[str, list[Rows]] = {}
    previous = ""
    for line in text.splitlines():
        if line in SECTIONS:
            current = sections.setdefault(line, [])
        elif line.startswith("+"):
            if not previous.startswith(("|", "+")):
                current.append([])
        elif line.startswith("|"):
            current[-1].append([cell.strip() for cell in line.split("|")[1:-1]])
        previous = line
    return sections


def only_grid(sections: dict[str, list[Rows]], title: str) -> Rows:
    """The rows of a section with one table, without the heading."""
    (rows,) = sections[title]
    assert all(len(row) == len(rows[0]) for row in rows)
    return rows[1:]
