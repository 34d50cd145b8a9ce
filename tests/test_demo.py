"""The command as a newcomer types it: demo and run, end to end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

NETS = '''
import torch
from torch import nn

def healthy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()

class Shared(nn.Module):
    """Two branches of very different range through one conv."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(256, 3)

    def forward(self, x):
        return self.fc(torch.cat([self.conv(x * 1000), self.conv(x)], 1).flatten(1))

class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("planted")

def data():
    return [torch.randn(4, 1, 8, 8) for _ in range(2)]

def score(model):
    return float(model(torch.ones(1, 1, 8, 8)).sum())
'''


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "profiler", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=240, env=environment, check=False,
    )  # fmt: skip


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


@pytest.mark.slow
def test_demo_pitfalls_prints_accuracies_findings_and_paths_that_exist(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    done = command("demo", "--model", "pitfalls", "--out", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    accuracy = {}
    for stage in ("float", "calib", "quantized"):
        found = re.search(rf"\b{stage}\b\D*(\d+(?:\.\d+)?)", words)
        assert found, f"{stage}: {words}"
        accuracy[stage] = float(found[1])
    assert accuracy["float"] > accuracy["quantized"]
    for rule in ("SH1", "FU1"):
        assert rule in words
    for name in ("profiler.html", "profiler.zip"):
        assert name in words
        assert (tmp_path / "out" / name).is_file()
    assert zipfile.ZipFile(tmp_path / "out" / "profiler.zip").testzip() is None


def test_run_small_model_file(nets: Path) -> None:
    done = command("run", "nets.py:healthy", "--data", "nets.py:data", "--evaluate", "nets.py:score", folder=nets)
    assert done.returncode == 0, done.stderr
    assert (nets / "profiler_out" / "profiler.html").is_file()
    assert "quantized" in done.stdout


@pytest.mark.parametrize(("strict", "code"), [((), 0), (("--strict",), 1)])
def test_run_strict_exits_with_1_on_a_severe_finding(strict: tuple[str, ...], code: int, nets: Path) -> None:
    done = command("run", "nets.py:Shared", "--data", "nets.py:data", "--no-zip", *strict, folder=nets)
    assert done.returncode == code, done.stdout + done.stderr
    assert "SH1" in done.stdout


def test_run_model_that_raises_is_one_line_and_exit_code_2(nets: Path) -> None:
    done = command("run", "nets.py:Broken", "--data", "nets.py:data", folder=nets)
    assert done.returncode == 2
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("quant-profiler:")]
    assert "RuntimeError: planted" in line
    assert not (nets / "profiler_out").exists()
