"""The command line as a user meets it: exit codes, one-line errors, real runs on real tensors."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import profiler
from profiler import ProfileReport, cli
from profiler.records import Finding, ReportData, Severity
from profiler.store import save_report

ROOT = Path(__file__).resolve().parent.parent
NETS = """
import torch
from torch import nn

def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()

def make_batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(3)]

def make_no_batches():
    return []

def evaluate(model):
    return sum(float(model(batch).abs().mean()) for batch in make_batches())

def slow():
    import time
    print("ready", flush=True)
    time.sleep(60)

def raises():
    raise RuntimeError("first line\\nsecond line")

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def run_cli(folder: Path, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """`quant-profiler ARGUMENTS` in a process of its own; `code` runs there first."""
    start = f"import sys\n{code}\nfrom profiler.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", start, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


# --- arguments ---


def test_main_version_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"quant-profiler {profiler.__version__}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["run"], ["render"]])
def test_main_help_names_the_exit_codes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    assert "exit codes: 0 fine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "COMMAND"),
        (["rnu"], "rnu"),
        (["run"], "--data"),
        (["run", "nets:m"], "--data"),
        (["run", "nets:m", "--data", "nets:d", "--num-batches", "0"], "0: expected a number above 0"),
        (["run", "nets:m", "--data", "nets:d", "--num-batches", "many"], "many"),
        (["demo", "--nothing"], "--nothing"),
        (["demo", "--model", "resnet"], "no sample model 'resnet'; there are: mobilenet_v2, multitask, pitfalls"),
        (["render"], "REPORT.JSON"),
        (["render", "nowhere/report.json"], "nowhere/report.json: no such file"),
        (["run", "nets", "--data", "nets:d"], "'nets': expected MODULE:NAME"),
        (["run", "no_such.py:make", "--data", "nets:d"], "no_such.py: no such file"),
        (["run", "no_such_module:make", "--data", "nets:d"], "no module named 'no_such_module'"),
    ],
)
def test_main_bad_arguments_give_one_line_and_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == cli.EXIT_BAD_INPUT
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("quant-profiler: ")
    assert expected in line
    assert "Traceback" not in captured.err
    assert captured.out == ""


# --- errors of the user's own code ---


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ("nets:make_modle", "nets:make_batches", "nets: has no name 'make_modle'; nearest: make_model"),
        ("nets.py:raises", "nets:make_batches", "calling it without arguments raised RuntimeError: first line second"),
        ("nets:make_model", "nets:make_batch", "nets: has no name 'make_batch'; nearest: make_batches"),
    ],
)
def test_run_bad_target_gives_one_line_and_2(folder: Path, model: str, data: str, expected: str) -> None:
    done = run_cli(folder, "run", model, "--data", data)
    assert done.returncode == cli.EXIT_BAD_INPUT
    assert expected in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_run_verbose_shows_the_traceback(folder: Path) -> None:
    for arguments in (["-v", "run"], ["run", "-v"]):
        done = run_cli(folder, *arguments, "nets:raises", "--data", "nets:make_batches")
        assert done.returncode == cli.EXIT_BAD_INPUT
        assert "Traceback" in done.stderr
        assert "raised RuntimeError" in done.stderr.splitlines()[-1]


def test_run_evaluate_that_is_no_function_gives_2(folder: Path) -> None:
    done = run_cli(folder, "run", "nets:make_model", "--data", "nets:make_batches", "--evaluate", "nets:number")
    assert done.returncode == cli.EXIT_BAD_INPUT
    assert done.stderr.splitlines()[-1] == "quant-profiler: nets:number: expected a function, got int"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_run_interrupted_gives_one_line_and_130(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "profiler", "run", "nets.py:slow", "--data", "nets:make_batches"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == cli.EXIT_INTERRUPTED
    assert error.splitlines()[-1] == "quant-profiler: interrupted"
    assert "Traceback" not in error


def test_main_internal_error_is_neither_1_nor_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise ZeroDivisionError("a fault\nof ours")

    monkeypatch.setattr(cli, "_run_render", fail)
    assert cli.main(["render", "report.json"]) == cli.EXIT_INTERNAL
    assert "internal error: ZeroDivisionError: a fault of ours; -v shows where" in capsys.readouterr().err


def test_main_text_that_the_encoding_cannot_hold_is_replaced(tmp_path: Path) -> None:
    save_report(ReportData(title="t", verdict="4 dB → 40 dB", created="2026-01-01"), tmp_path / "report.json")
    code = "import io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='ascii')"
    done = run_cli(tmp_path, "render", "report.json", code=code)
    assert done.returncode == cli.EXIT_OK, done.stderr
    assert "4 dB ? 40 dB" in done.stdout


def test_demo_without_scikit_learn_says_what_to_install(folder: Path) -> None:
    done = run_cli(folder, "demo", "--out", "out", code="sys.modules['sklearn'] = None")
    assert done.returncode == cli.EXIT_BAD_INPUT
    assert "pip install quant-profiler[demo]" in done.stderr.splitlines()[-1]
    assert not (folder / "out").exists()


# --- whole runs ---


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One real run of the command, read by several tests."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "nets.py").write_text(NETS)
    arguments = ["--data", "nets.py:make_batches", "--evaluate", "nets.py:evaluate", "--num-batches", "2"]
    return folder, run_cli(folder, "run", "nets.py:make_model", *arguments, "--out", "out")


def test_run_tiny_model_writes_page_and_archive(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = finished_run
    assert done.returncode == cli.EXIT_OK, done.stderr
    for name in ("report.json", "profiler.html", "profiler.zip", "similarity.txt"):
        assert (folder / "out" / name).is_file(), name


def test_run_tiny_model_prints_verdict_stages_and_paths(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = finished_run
    data = json.loads((folder / "out" / "report.json").read_text("utf-8"))
    text = " ".join(done.stdout.split())
    assert " ".join(data["verdict"].split()) in text
    for stage in ("float", "calib", "quantized"):
        assert stage in text
    assert "profiler.html" in text
    assert "profiler.zip" in text
    assert "Traceback" not in done.stderr


def test_run_tiny_model_names_its_steps_on_stderr(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    lines = finished_run[1].stderr.splitlines()
    assert lines[0] == "load model and data"
    assert len(lines) > 2
    assert "\x1b" not in finished_run[1].stderr


def test_run_without_zip_into_module_data(folder: Path) -> None:
    done = run_cli(folder, "run", "nets:make_model", "--data", "nets:make_batches", "--out", "out", "--no-zip")
    assert done.returncode == cli.EXIT_OK, done.stderr
    assert not (folder / "out" / "profiler.zip").exists()
    assert "Archive" not in done.stdout


def test_run_empty_data_gives_2(folder: Path) -> None:
    done = run_cli(folder, "run", "nets:make_model", "--data", "nets:make_no_batches", "--out", "out")
    assert done.returncode == cli.EXIT_BAD_INPUT
    assert "Traceback" not in done.stderr


def test_run_unknown_march_gives_2_and_names_the_marches(folder: Path) -> None:
    done = run_cli(folder, "run", "nets:make_model", "--data", "nets:make_batches", "--march", "PENTIUM")
    assert done.returncode == cli.EXIT_BAD_INPUT
    assert "PENTIUM" in done.stderr.splitlines()[-1]
    assert "BAYES" in done.stderr.splitlines()[-1].upper()


@pytest.mark.parametrize(
    ("severity", "strict", "code"),
    [("E", True, cli.EXIT_FINDINGS), ("E", False, cli.EXIT_OK), ("W", True, cli.EXIT_OK), ("I", True, cli.EXIT_OK)],
)
def test_run_strict_gives_1_for_findings_of_severity_e_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], severity: Severity, strict: bool, code: int
) -> None:
    data = ReportData("t", "v", "2026-01-01", findings=(Finding("SH1", "t", severity, "conv", "a", "C"),))
    report = ProfileReport(data)
    received: dict[str, object] = {}

    def fake_profiler(model: object, data: object, **kwargs: object) -> object:
        received.update(kwargs, model=model, data=data)
        return report

    monkeypatch.setattr("profiler.api.model_profiler", fake_profiler)
    arguments = ["run", "math:pi", "--data", "math:e", "--evaluate", "math:sqrt", "--num-batches", "5", "--out", "x"]
    assert cli.main([*arguments, "--strict"] if strict else arguments) == code
    assert (received["model"], received["data"], received["evaluate"]) == (math.pi, math.e, math.sqrt)
    assert (received["num_batches"], received["out_dir"], received["make_zip"]) == (5, Path("x"), True)
    assert "SH1" in capsys.readouterr().out


# --- render ---


def test_render_needs_no_torch(finished_run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    report = finished_run[0] / "out" / "report.json"
    done = run_cli(tmp_path, "render", str(report), "--out", "again", code="sys.modules['torch'] = None")
    assert done.returncode == cli.EXIT_OK, done.stderr
    assert "Page:" in done.stdout
    for name in ("report.json", "profiler.html", "profiler.zip"):
        assert (tmp_path / "again" / name).is_file(), name


def test_render_gives_the_same_page_again(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out = finished_run[0] / "out"
    assert cli.main(["render", str(out), "--out", str(tmp_path)]) == cli.EXIT_OK
    for name in ("profiler.html", "report.json", "similarity.txt"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name


def test_render_broken_json_gives_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text('{"schema_version": 1,')
    assert cli.main(["render", str(tmp_path / "report.json")]) == cli.EXIT_BAD_INPUT
    assert "report.json" in capsys.readouterr().err
