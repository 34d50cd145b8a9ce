"""The project's own files agree with each other: pins, extras, public names, make targets."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import profiler

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def read_pins(name: str, python: str) -> dict[str, str]:
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements" / name).read_text("utf-8").splitlines():
        if line.startswith("-r "):
            pins |= read_pins(line[3:].strip(), python)
        elif line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
                assert requirement.name not in pins, f"{name}: {requirement.name} is pinned twice for {python}"
                pins[requirement.name] = re.fullmatch(r"==([\w.]+)", str(requirement.specifier))[1]  # type: ignore[index]
    return pins


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("file", "extras"), [("demo.txt", ("demo",)), ("dev.txt", ("demo", "deploy", "test", "lint"))])
def test_pins_meet_every_declared_dependency(file: str, extras: tuple[str, ...], python: str) -> None:
    pins = read_pins(file, python)
    declared = [*PROJECT["dependencies"], *(item for extra in extras for item in EXTRAS[extra])]
    for requirement in map(Requirement, declared):
        assert requirement.name in pins
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_torch_is_pinned_to_the_release_that_ci_tests() -> None:
    assert read_pins("demo.txt", "3.11")["torch"] == "2.13.0"


def test_every_dependency_is_imported_somewhere() -> None:
    modules = {
        alias.name.split(".")[0]
        for path in sorted((ROOT / "profiler").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    modules |= {"numpy", "safetensors"}  # numpy: what torch, pandas and bokeh exchange; safetensors: sample_models
    declared = {Requirement(item).name for item in PROJECT["dependencies"]}
    assert declared - modules == set()


@pytest.mark.parametrize("name", [name for name in profiler.__all__ if name != "__version__"])
def test_public_name_loads_from_its_module(name: str) -> None:
    module = importlib.import_module(profiler._EXPORTS[name])
    assert getattr(profiler, name) is getattr(module, name)


def test_public_names_agree_with_type_checking_block() -> None:
    tree = ast.parse((ROOT / "profiler/__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == profiler._EXPORTS
    assert set(profiler.__all__) == {*profiler._EXPORTS, "__version__"}
    assert profiler.__all__ == sorted(profiler.__all__)


def test_unknown_public_name_is_an_attribute_error_that_lists_the_names() -> None:
    with pytest.raises(AttributeError, match="model_profiler"):
        profiler.model_profilr  # noqa: B018
    assert set(profiler.__all__) <= set(dir(profiler))


def test_import_of_the_package_loads_nothing_heavy() -> None:
    code = "import sys, profiler; print(sorted({'torch', 'pandas', 'numpy', 'bokeh', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_package_folder_is_a_package() -> None:
    for folder in ("profiler", "sample_models"):
        missing = [path.parent for path in (ROOT / folder).rglob("*.py") if not (path.parent / "__init__.py").exists()]
        assert missing == []


def test_makefile_has_the_documented_targets() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    for target in ("demo", "test", "bench", "lint", "clean"):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target


def test_ci_calls_make_lint_and_make_test_only() -> None:
    lines = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("make ")] == ["lint", "test"]


@pytest.mark.skipif(not os.environ.get("CI"), reason="elsewhere the browser tests are skipped")
def test_ci_has_a_browser() -> None:
    assert shutil.which("chromium"), "without Chromium the page is not tested"
    assert shutil.which("chromedriver")


def test_changelog_has_the_version_or_unreleased_changes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(profiler.__version__)})\]", text, re.MULTILINE)


def test_readme_links_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
