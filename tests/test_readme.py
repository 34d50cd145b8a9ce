"""What the README states is what the code does: accuracies, names of files, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from profiler import ProfileReport, cli, model_profiler
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    March,
    QuantStub,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat_fx,
    set_fake_quantize,
    set_march,
)
from profiler.records import Comparison, ModelRecord, ReportData
from sample_models import mobilenet_v2, pitfalls

README = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")
SMALLEST_STEP = 100 / 397  # percent: one image of the held-out set, which another CPU's rounding may move


def stated_accuracies(row: str) -> list[float]:
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {row} |")]
    return [float(cell) for cell in line.split("|")[2:-1]]


def mobilenet_stages() -> list[nn.Module]:
    model = mobilenet_v2.load()
    set_march(March.BAYES)
    calib_model = prepare_qat_fx(model, {"": default_calib_8bit_fake_quant_qconfig})
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.CALIBRATION)
    for batch in mobilenet_v2.calibration_batches():
        calib_model(batch)
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.VALIDATION)
    return [model, calib_model, convert_fx(calib_model)]


def pitfalls_stages(repaired: bool) -> list[nn.Module]:
    calib_model = pitfalls.calibrate(pitfalls.prepare(pitfalls.load(repaired)))
    return [pitfalls.load(repaired), calib_model, convert(calib_model.eval())]


def test_readme_states_the_accuracy_of_mobilenet_v2() -> None:
    measured = [mobilenet_v2.evaluate(stage) for stage in mobilenet_stages()]
    assert stated_accuracies("`mobilenet_v2`, a healthy network") == pytest.approx(measured, abs=SMALLEST_STEP + 0.01)


@pytest.mark.parametrize(("row", "repaired"), [("with planted faults", False), ("faults repaired", True)])
def test_readme_states_the_accuracy_of_pitfalls(row: str, repaired: bool) -> None:
    measured = [pitfalls.evaluate(stage) for stage in pitfalls_stages(repaired)]
    assert stated_accuracies(f"`pitfalls`, {row}") == pytest.approx(measured, abs=SMALLEST_STEP + 0.01)


def test_readme_names_files_that_a_report_has(tmp_path: Path) -> None:
    model = ModelRecord(stage="float", title="tiny")
    data = ReportData("t", "v", "2026-01-01", comparisons=(Comparison("FvsQ", model, model),))
    ProfileReport.write(data, tmp_path)
    section = README.split("## The files")[1].split("\n## ")[0]
    names = [name for name in re.findall(r"`([\w.]+)`", section) if "." in name[1:]]
    assert len(names) >= 8
    assert [name for name in names if not (tmp_path / name).exists()] == []


def test_readme_commands_have_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    quant-profiler (\w+) (.*)$", README, re.MULTILINE)
    assert {name for name, _ in commands} == {"demo", "run", "render"}
    for name, arguments in commands:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        help_text = capsys.readouterr().out
        for option in re.findall(r"--[\w-]+", arguments):
            assert option in help_text


class Handmade(nn.Module):
    """A network with the names that the README's code uses."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2, self.fc = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(self.quant(x))))
        logits: torch.Tensor = self.dequant(self.fc(self.bn2(self.conv2(x)).mean([2, 3])))
        return logits


def test_readme_code_for_quantizing_by_hand_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "prepare_qat(" in block]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    batches = [torch.randn(4, 1, 12, 12) for _ in range(3)]
    names = {"model": Handmade().eval(), "batches": batches, "model_profiler": model_profiler}
    exec(code, names)

    report = names["report"]
    assert isinstance(report, ProfileReport)
    assert [c.mode for c in report.data.comparisons] == ["FvsQ", "QvsQ"]
    assert [f for f in report.findings if f.severity == "E"] == []
