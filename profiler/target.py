"""Finds what a user names on the command line: MODULE:NAME or file.py:NAME."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from profiler.errors import ConfigError


def load_target(text: str) -> object:
    """Imports a module, or runs a file as one, and gives the object of that name.

    Args:
        text: `package.module:name`, `path/to/file.py:name`; the name may be dotted.

    Returns:
        The object itself; nothing is called.

    Raises:
        ConfigError: The text has another form, or there is no such module, file or name; the nearest ones are named.
    """
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise ConfigError(f"{text!r}: expected MODULE:NAME, such as my_package.nets:make_model or nets.py:make_model")
    is_file = place.endswith(".py") or os.sep in place
    found: object = _load_file(Path(place)) if is_file else _load_module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_") and not isinstance(getattr(found, n), ModuleType)]
            raise ConfigError(f"{place}: has no name {part!r}{_nearest(part, names)}")
        found = getattr(found, part)
    return found


def make_from_target(text: str) -> object:
    """Loads a target and, if it is a factory, calls it without arguments.

    A module of torch is callable too, but is no factory: it is given as it is.

    Raises:
        ConfigError: As `load_target`, or the factory raised.
    """
    found = load_target(text)
    if not callable(found) or _is_torch_module(found):
        return found
    try:
        return found()
    except Exception as error:
        raise ConfigError(f"{text}: calling it without arguments raised {describe(error)}") from error


def describe(error: BaseException) -> str:
    """An exception in one line: its class and its message, without line breaks."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _is_torch_module(found: object) -> bool:
    # looked up, not imported: if torch is not loaded, nothing can be a module of torch
    torch_nn = sys.modules.get("torch.nn")
    return torch_nn is not None and isinstance(found, torch_nn.Module)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        names = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file{_nearest(path.name, names)}")
    path = path.resolve()
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if loaded is not None or name in sys.stdlib_module_names:
        name = f"_target_{name}"  # a file that happens to be called json.py must not replace the real json
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: is no Python file")
    _make_importable(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: importing it raised {describe(error)}") from error
    return module


def _load_module(name: str) -> ModuleType:
    _make_importable(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"no module named {error.name!r}{_nearest(name, _module_names(name))}") from error
        raise ConfigError(f"{name}: importing it raised {describe(error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{name}: importing it raised {describe(error)}") from error


def _make_importable(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _module_names(name: str) -> list[str]:
    """Modules beside the one that was asked for: in its package, or at the top."""
    parent = name.rpartition(".")[0]
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    prefix = f"{parent}." if path else ""
    return [prefix + module.name for module in pkgutil.iter_modules(path)]


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(set(names)), n=3, cutoff=0.0)
    return f"; nearest: {', '.join(close)}" if close else ""
