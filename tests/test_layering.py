"""The imports of the layers, and that each check can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import layering

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def package() -> layering.Package:
    return layering.read_package(ROOT / "profiler")


def make_package(tmp_path: Path, files: dict[str, str]) -> layering.Package:
    folder = tmp_path / "profiler"
    for name, text in {"__init__.py": "", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(folder).parents:
            (folder / parent / "__init__.py").touch()
        path.write_text(text, "utf-8")
    return layering.read_package(folder)


def test_profiler_imports_follow_the_design(package: layering.Package) -> None:
    assert layering.check_arrows(package) == []


def test_profiler_has_no_import_cycle(package: layering.Package) -> None:
    assert layering.find_cycle(package) == []


def test_profiler_never_uses_torch_quantization(package: layering.Package) -> None:
    assert layering.check_torch_quantization(package) == []


def test_profiler_prints_in_the_command_line_only(package: layering.Package) -> None:
    assert layering.check_print(package) == []


def test_source_files_are_small() -> None:
    folders = ("profiler", "sample_models", "tests", "benchmarks")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert layering.check_sizes(paths) == []


@pytest.mark.parametrize(
    "module",
    ["profiler.report.render_html", "profiler.profile_report", "profiler.store", "profiler.cli", "profiler.console"],
)
def test_report_side_loads_without_torch(module: str) -> None:
    code = f"import sys, profiler, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "torch was imported"


# --- each check can fail ---


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("report/page.py", "import torch\n", "report may not import torch"),
        ("report/page.py", "def f():\n    import torch.nn\n", "report may not import torch"),
        ("report/page.py", "from profiler.capture import hooks\n", "report may not import capture"),
        ("report/page.py", "from ..analysis.rank import f\n", "report may not import analysis"),
        ("report/deep/page.py", "from ...quant.affine import f\n", "report may not import quant"),
        ("report/__init__.py", "from ..quant import affine\n", "report may not import quant"),
        ("quant/ops/add.py", "import profiler.records\n", "quant may not import records"),
        ("quant/ops/add.py", "from ... import records\n", "quant may not import records"),
        ("quant/ops/add.py", "import numpy as np\n", "quant may not import numpy"),
        ("quant/ops/add.py", "import onnx\n", "quant may not import onnx"),
        ("analysis/rank.py", "from pandas import DataFrame\n", "analysis may not import pandas"),
        ("analysis/rank.py", "try:\n    import torch\nfinally:\n    pass\n", "analysis may not import torch"),
        (
            "analysis/rank.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from profiler.capture.hooks import H\n",
            "analysis may not import capture",
        ),
        ("capture/hooks.py", "from profiler import model_profiler\n", "is a name of the package's root"),
        ("profile_report.py", "import pandas\n", "profile_report may not import pandas"),
        ("helpers.py", "import profiler.records\n", "unit 'helpers' is not in the table"),
        ("api.py", "import requests\n", "api may not import requests"),
        ("api.py", "from profiler.cli import main\n", "api may not import cli"),
        ("__init__.py", "from profiler.api import model_profiler\n", "under TYPE_CHECKING only"),
    ],
)
def test_check_arrows_finds_forbidden_import(tmp_path: Path, name: str, text: str, expected: str) -> None:
    others = {f: "" for f in ("records.py", "api.py", "cli.py", "quant/affine.py", "capture/hooks.py") if f != name}
    problems = layering.check_arrows(make_package(tmp_path, {**others, name: text}))
    assert len(problems) == 1
    assert expected in problems[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("report/page.py", "import json\nfrom profiler.records import Finding\nfrom ..errors import ReportError\n"),
        ("quant/ops/add.py", "import torch\nfrom torch import nn\nfrom profiler.quant import affine\n"),
        ("quant/deploy/export.py", "import onnx\nimport torch\n"),
        ("api.py", "from profiler import __version__, quant\n"),
        ("profile_report.py", "import typing\nif typing.TYPE_CHECKING:\n    import pandas\n"),
        ("__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from profiler.api import f\n"),
    ],
)
def test_check_arrows_accepts_allowed_import(tmp_path: Path, name: str, text: str) -> None:
    others = {f: "" for f in ("records.py", "errors.py", "quant/affine.py", "api.py") if f != name}
    assert layering.check_arrows(make_package(tmp_path, {**others, name: text})) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch.ao.quantization\n",
        "from torch.ao import nn\n",
        "from torch import ao\n",
        "from torch.quantization import QuantStub\n",
        "import torch\ntorch.ao.quantization.prepare(None)\n",
        "import torch\ndtype = torch.qint8\n",
        "from torch import qint8\n",
    ],
)
def test_check_torch_quantization_finds_use(tmp_path: Path, text: str) -> None:
    assert layering.check_torch_quantization(make_package(tmp_path, {"quant/core.py": text}))


def test_check_torch_quantization_accepts_plain_torch(tmp_path: Path) -> None:
    text = "import torch\nfrom torch import nn\nx = torch.int8\nname = 'torch.qint8'\n"
    assert layering.check_torch_quantization(make_package(tmp_path, {"quant/core.py": text})) == []


def test_find_cycle_finds_imports_inside_functions(tmp_path: Path) -> None:
    files = {"quant/a.py": "from profiler.quant import b\n", "quant/b.py": "def f():\n    from . import a\n"}
    cycle = layering.find_cycle(make_package(tmp_path, files))
    assert cycle[0] == cycle[-1]
    assert set(cycle) == {"profiler.quant.a", "profiler.quant.b"}


def test_find_cycle_passes_over_type_checking_imports(tmp_path: Path) -> None:
    back = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from profiler.quant.a import f\n"
    files = {"quant/a.py": "from profiler.quant import b\n", "quant/b.py": back}
    assert layering.find_cycle(make_package(tmp_path, files)) == []


def test_check_print_finds_call_outside_cli(tmp_path: Path) -> None:
    files = {"cli.py": "print(1)\n", "api.py": "def f():\n    print(1)\n", "console.py": "console.print(1)\n"}
    assert layering.check_print(make_package(tmp_path, files)) == ["profiler.api:2: print() outside cli"]


def test_check_sizes_finds_long_file(tmp_path: Path) -> None:
    long, short = tmp_path / "long.py", tmp_path / "short.py"
    long.write_text("x = 1\n" * 11)
    short.write_text("x = 1\n" * 10)
    assert layering.check_sizes([long, short], limit=10) == [f"{long}: 11 lines, the limit is 10"]
