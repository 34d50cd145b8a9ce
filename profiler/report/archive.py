"""Packs a report's files into profiler.zip; the same files and time give the same bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

_OLDEST = (1980, 1, 1, 0, 0, 0)


def write_archive(path: Path, folder: Path, names: Iterable[str], created: str) -> None:
    """Writes a zip.

    Args:
        path: the zip to write.
        folder: where the files lie.
        names: their paths below `folder`, with "/".
        created: ISO time of the report, given to each file; if it is no time, the oldest that a zip can hold.
    """
    moment = _moment(created)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(names):
            info = zipfile.ZipInfo(name, moment)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, (folder / name).read_bytes())


def _moment(created: str) -> tuple[int, int, int, int, int, int]:
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return _OLDEST
    return (time.year, time.month, time.day, time.hour, time.minute, time.second) if time.year >= 1980 else _OLDEST
