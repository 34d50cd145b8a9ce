"""MODULE:NAME and file.py:NAME, and what is said where they do not exist."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiler.errors import ConfigError
from profiler.target import describe, load_target, make_from_target

NETS = """
import math
from neighbour import SIZE

def make_model():
    return {"size": SIZE}

def make_modle():
    return None

def needs_argument(x):
    return x

class Nets:
    @staticmethod
    def small():
        return "small"

batches = [1, 2, 3]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with nets.py, made the current one; what it imports is forgotten afterwards."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "neighbour.py").write_text("SIZE = 7\n")
    (tmp_path / "broken.py").write_text("x = (\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(5)\n")
    (tmp_path / "needs.py").write_text("import package_that_is_not_there\n")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").touch()
    (tmp_path / "pack" / "models.py").write_text("def make(): return 'packed'\n")
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nets:make_model", {"size": 7}),
        ("nets.py:make_model", {"size": 7}),
        ("./nets.py:make_model", {"size": 7}),
        ("nets:Nets.small", "small"),
        ("nets:batches", [1, 2, 3]),
        ("pack.models:make", "packed"),
    ],
)
def test_make_from_target_finds_and_calls(folder: Path, text: str, expected: object) -> None:
    assert make_from_target(text) == expected


def test_make_from_target_file_in_other_folder_sees_its_neighbours(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert make_from_target(f"{folder}/nets.py:make_model") == {"size": 7}


def test_load_target_same_file_twice_is_one_module(folder: Path) -> None:
    assert load_target("nets.py:batches") is load_target("nets.py:batches")
    assert load_target("nets.py:batches") is load_target("nets:batches")


def test_load_target_file_named_like_a_standard_module_does_not_replace_it(folder: Path) -> None:
    (folder / "json.py").write_text("value = 1\n")
    assert load_target("json.py:value") == 1
    assert "value" not in vars(__import__("json"))


def test_make_from_target_gives_torch_module_as_it_is(folder: Path) -> None:
    (folder / "with_torch.py").write_text("from torch import nn\nmodel = nn.Identity()\n")
    assert type(make_from_target("with_torch:model")).__name__ == "Identity"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nets", "expected MODULE:NAME"),
        (":make", "expected MODULE:NAME"),
        ("nets:", "expected MODULE:NAME"),
        ("net.py:make_model", "net.py: no such file; nearest: nets.py"),
        ("nest:make_model", "no module named 'nest'; nearest: "),
        ("pack.model:make", "no module named 'pack.model'; nearest: pack.models"),
        ("nets:make_mode", "nets: has no name 'make_mode'; nearest: make_mod"),
        ("nets:Nets.large", "nets: has no name 'large'; nearest: small"),
        ("broken:x", "broken: importing it raised SyntaxError"),
        ("broken.py:x", "broken.py: importing it raised SyntaxError"),
        ("exits:x", "exits: importing it raised SystemExit: 5"),
        ("needs:x", "needs: importing it raised ModuleNotFoundError: No module named 'package_that_is_not_there'"),
        ("nets:needs_argument", "nets:needs_argument: calling it without arguments raised TypeError"),
    ],
)
def test_make_from_target_bad_input_says_what_and_what_is_near(folder: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_from_target(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_target_names_three_nearest_and_no_imported_module(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_target("nets:math_")
    nearest = str(caught.value).split("nearest: ")[1].split(", ")
    assert len(nearest) == 3
    assert "math" not in nearest


def test_load_target_failed_file_is_not_kept(folder: Path) -> None:
    with pytest.raises(ConfigError):
        load_target("broken.py:x")
    (folder / "broken.py").write_text("x = 1\n")
    assert load_target("broken.py:x") == 1


def test_describe_is_one_line() -> None:
    assert describe(ValueError("a\n  b")) == "ValueError: a b"
    assert describe(KeyboardInterrupt()) == "KeyboardInterrupt"
