"""Puts a new report in the place of an old one, as a whole or not at all, and leaves all other files alone."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from profiler.errors import ReportError

MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)


@contextmanager
def staging(out_dir: Path) -> Iterator[Path]:
    """Gives an empty folder to write a report into, on the file system of `out_dir`.

    It lies inside `out_dir`, because a folder beside it may be on another file system (a mount) or not writable. It is
    removed in the end; `out_dir` too, when it was made here and nothing was put into it.
    """
    made = _make_folder(out_dir)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=".profiler-", dir=out_dir))
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def read_manifest(out_dir: Path) -> tuple[str, ...]:
    """Gives the files of the report that lies in `out_dir`; none if there is no report or its list is damaged."""
    try:
        names = json.loads((out_dir / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    if not isinstance(names, list):
        return ()
    return tuple(name for name in names if isinstance(name, str) and _is_inside(name))


def write_manifest(folder: Path, names: Sequence[str]) -> None:
    """Lists the files of a report, so that the next run replaces these and no others."""
    text = json.dumps({"files": sorted({*names, MANIFEST})}, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def swap_in(folder: Path, out_dir: Path, names: Sequence[str]) -> None:
    """Moves the files `names` from `folder` into `out_dir` and takes the old report's files away.

    A file in the way that no report wrote is kept under another name (`similarity.txt.kept`). When a move fails, all
    moves are taken back and the error is raised again.
    """
    old = read_manifest(out_dir)
    moves = _Moves(folder / ".old")
    try:
        for name in old:
            moves.set_aside(out_dir / name, name)
        for name in names:
            _clear_way(out_dir, name, moves)
            moves.move(folder / name, out_dir / name)
    except BaseException:
        moves.take_back()
        raise
    _remove_empty_folders(out_dir, old)


@dataclass
class _Moves:
    """The moves made so far, so that they can be taken back."""

    backup: Path
    done: list[tuple[Path, Path]] = field(default_factory=list)
    made: list[Path] = field(default_factory=list)

    def set_aside(self, path: Path, name: str) -> None:
        if path.is_symlink() or path.is_file():
            self.move(path, self.backup / name)

    def move(self, source: Path, target: Path) -> None:
        self.made += _make_folder(target.parent)
        source.rename(target)
        self.done.append((source, target))

    def take_back(self) -> None:
        for source, target in reversed(self.done):
            with suppress(OSError):
                target.rename(source)
        for folder in reversed(self.made):
            with suppress(OSError):
                folder.rmdir()


def _clear_way(out_dir: Path, name: str, moves: _Moves) -> None:
    """Renames what stands where a file or one of its folders has to be."""
    path = out_dir
    parts = PurePosixPath(name).parts
    for position, part in enumerate(parts):
        path = path / part
        is_last = position == len(parts) - 1
        if (path.exists() or path.is_symlink()) and (is_last or path.is_symlink() or not path.is_dir()):
            kept = _free_name(path)
            moves.move(path, kept)
            _log.warning("%s is no file of a report; it was kept as %s", path, kept.name)


def _free_name(path: Path) -> Path:
    names = [path.with_name(f"{path.name}.kept"), *(path.with_name(f"{path.name}.kept{n}") for n in range(2, 1000))]
    for name in names:
        if not (name.exists() or name.is_symlink()):
            return name
    raise ReportError(f"{path}: it is no file of a report and 999 copies of it were kept already; move them away")


def _make_folder(folder: Path) -> list[Path]:
    """Makes a folder and gives the ones that were made, the innermost first."""
    missing = []
    parent = folder
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty_folders(out_dir: Path, names: Sequence[str]) -> None:
    parents = {parent for name in names for parent in PurePosixPath(name).parents if str(parent) != "."}
    for parent in sorted(parents, key=lambda item: -len(item.parts)):
        with suppress(OSError):
            (out_dir / parent).rmdir()


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
