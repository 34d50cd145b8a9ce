"""The wheel works without the source tree: it brings its templates, sample models and command along."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import profiler
from profiler.records import Comparison, Coverage, ModelRecord, ReportData
from profiler.store import save_report

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="the package `build` is not installed"),
]


@dataclass(frozen=True)
class Installed:
    """A venv that holds the wheel, and a working directory far from the source tree."""

    bin: Path
    work: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        arguments = [str(self.bin / command[0]), *command[1:]]
        return subprocess.run(
            arguments, cwd=self.work, env=environment, capture_output=True, text=True, check=False, timeout=300
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out)]
    if importlib.util.find_spec("hatchling"):
        command.append("--no-isolation")
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Installs the wheel alone; its dependencies are lent by the running environment, the project itself is not."""
    folder = tmp_path_factory.mktemp("wheel_env")
    venv.create(folder, with_pip=False, symlinks=os.name == "posix")
    scripts = folder / ("bin" if os.name == "posix" else "Scripts")
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, cwd=folder)
    libraries = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", vars=libraries))
    # a path in a .pth file is added, but no .pth file found there is run: an editable install of the project stays out
    (site_packages / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    work = folder / "elsewhere"
    work.mkdir()
    return Installed(scripts, work)


def test_wheel_holds_templates_weights_and_typing_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    templates = [path for path in (ROOT / "templates").rglob("*") if path.is_file()]
    assert templates
    assert {f"profiler/{path.relative_to(ROOT).as_posix()}" for path in templates} <= names
    weights = [path for path in (ROOT / "sample_models").rglob("*.safetensors") if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in weights} <= names
    assert {"profiler/py.typed", "sample_models/__init__.py"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "templates/", "docs/")) for name in names)


def test_wheel_is_imported_from_its_environment(installed: Installed) -> None:
    code = "import profiler, sample_models, torch; print(profiler.__file__); print(sample_models.__file__)"
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert Path(line).resolve().is_relative_to(installed.bin.parent.resolve())
        assert not Path(line).resolve().is_relative_to(ROOT)


def test_wheel_brings_the_command(installed: Installed) -> None:
    done = installed.run("quant-profiler", "--version")
    assert done.stdout == f"quant-profiler {profiler.__version__}\n"


def test_wheel_renders_a_page(installed: Installed) -> None:
    model = ModelRecord(stage="float", title="tiny")
    comparison = Comparison(mode="FvsQ", reference=model, test=model, coverage=Coverage(3, 3))
    data = ReportData(title="tiny", verdict="Nothing is wrong.", created="2026-01-01", comparisons=(comparison,))
    save_report(data, installed.work / "report.json")
    done = installed.run("quant-profiler", "render", "report.json", "--out", "page")
    assert done.returncode == 0, done.stderr
    assert "Nothing is wrong." in (installed.work / "page" / "profiler.html").read_text("utf-8")
    assert (installed.work / "page" / "profiler.zip").is_file()


def test_wheel_runs_the_demo(installed: Installed) -> None:
    done = installed.run("quant-profiler", "demo", "--model", "mobilenet_v2", "--out", "demo")
    assert done.returncode == 0, done.stderr
    assert (installed.work / "demo" / "profiler.html").is_file()
