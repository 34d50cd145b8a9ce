"""Where the report goes, and the user's metric: a failing run changes nothing, a good one replaces all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from profiler import ProfileReport
from profiler.errors import DataError, ModelError, ReportError
from tests.api.calls import Half, Net, batch, fails, reports
from tests.capture.stages import images


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_out_dir_below_a_file_is_found_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ran: list[int] = []
    data = [batch()]
    model = Net()
    model.conv.register_forward_hook(lambda *_: ran.append(1))
    fails(
        ReportError,
        ["out_dir", "file", "cannot be written", "pass another"],
        model,
        data,
        out_dir=tmp_path / "file/out",
    )
    assert ran == []
    assert (tmp_path / "file").read_text() == "mine"


def test_out_dir_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    fails(ReportError, ["file", "cannot be written"], Net(), [batch()], out_dir=tmp_path / "file")


def test_failing_run_leaves_no_folder(tmp_path: Path) -> None:
    fails(DataError, ["batch 0"], Net(), images(2, 3, 4, 4), out_dir=tmp_path / "new/out")
    assert not (tmp_path / "new").exists()


def test_second_run_replaces_the_old_report_as_a_whole(tmp_path: Path) -> None:
    first = reports(Net(), batch(), tmp_path, in_full=True)
    old = {p.name for p in tmp_path.iterdir()}
    (tmp_path / "notes.txt").write_text("mine")
    stale = tmp_path / "model0_statistic.txt"
    assert stale.name in old
    stale.write_text("old")
    second = reports(Net(), batch(3), tmp_path, in_full=True)
    assert {p.name for p in tmp_path.iterdir()} == old | {"notes.txt"}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert stale.read_text() != "old"
    assert first.data.fingerprints["inputs"] != second.data.fingerprints["inputs"]
    assert ProfileReport.load(tmp_path).data == second.data


def test_failing_second_run_leaves_the_old_report(tmp_path: Path) -> None:
    reports(Net(), batch(), tmp_path, in_full=True)
    before = {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    fails(ModelError, ["batch 1"], Half(), [batch(), batch(3)], out_dir=tmp_path)
    fails(ModelError, ["evaluate raised"], Net(), batch(), out_dir=tmp_path, evaluate=lambda model: 1 / 0)
    assert {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("returned", "parts"),
    [
        ("good", ["evaluate returned 'good' (str)", "expected a number"]),
        ("0.5", ["evaluate returned '0.5' (str)"]),
        (None, ["evaluate returned None"]),
        (float("nan"), ["evaluate returned nan", "finite"]),
        (torch.zeros(3), ["evaluate returned tensor", "one number"]),
    ],
    ids=str,
)
def test_evaluate_that_gives_no_number(returned: Any, parts: list[str]) -> None:
    fails(ModelError, [*parts, "on the float model"], Net(), batch(), evaluate=lambda model: returned)


def test_evaluate_that_raises_does_so_before_the_long_part() -> None:
    steps: list[str] = []
    parts = ["evaluate raised ZeroDivisionError on the float model", "return a number"]
    fails(ModelError, parts, Net(), batch(), evaluate=lambda m: 1 / 0, progress=lambda step, *_: steps.append(step))
    assert "calibrate" not in steps


@pytest.mark.parametrize("value", [1, 0.5, True, torch.tensor(0.5), torch.tensor([0.5])], ids=str)
def test_evaluate_is_called_on_every_stage(value: Any, tmp_path: Path) -> None:
    flags: list[bool] = []

    def evaluate(model: nn.Module) -> Any:
        flags.append(model.training)
        model.train()
        return value

    report = reports(Net(), batch(), tmp_path, evaluate=evaluate)
    assert [(m.stage, m.value) for m in report.stage_metrics] == [
        ("float", float(value)), ("calib", float(value)), ("quantized", float(value)),
    ]  # fmt: skip
    assert flags == [False, False, False]
