"""The original's six-argument form, and what every report must be: complete, repeatable, readable again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from profiler import ProfileReport, model_profiler
from profiler.errors import ConfigError, DataError, ModelError, ReportError
from profiler.quant import FakeQuantState, set_fake_quantize
from profiler.records import ReportData
from tests.api.quick import write_quickly
from tests.capture import awkward_models as nets
from tests.capture.stages import assert_untouched, calibrated, images, stages

X = images(2, 3, 6, 6)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.report.write.write_report", write_quickly)


def profile(first: nn.Module, second: nn.Module, mode: str, out_dir: Path, *rest: Any, **options: Any) -> ProfileReport:
    def run() -> ProfileReport:
        return model_profiler(first, second, X, mode, out_dir, *rest, **options)

    return assert_untouched(first, lambda: assert_untouched(second, run))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("net", [nets.SharedBlock, nets.ConvBnRelu, nets.PlainFunctionsFirst, nets.InPlace])
def test_pair_form_float_calib_and_calib_quantized(net: Any, front_end: str, tmp_path: Path) -> None:
    reference, calib, quantized = stages(net().eval(), front_end, X)
    report = profile(reference, calib, "FvsQ", tmp_path / "f")
    main = report.data.main
    assert main is not None
    assert (main.mode, main.reference.stage, main.test.stage) == ("FvsQ", "float", "calib")
    assert [layer for layer in main.layers if layer.status not in ("compared", "fused")] == []
    report = profile(calib, quantized, "QvsQ", tmp_path / "q", {"compare_weights": {}})
    main = report.data.main
    assert main is not None
    assert (main.mode, main.reference.stage, main.test.stage) == ("QvsQ", "qat", "quantized")
    assert main.unfused == ()
    assert main.qconfig.outputs
    worst = max(layer.injected.atol_scales or 0 for layer in main.layers if layer.injected)
    assert worst <= 1.001


@pytest.mark.usefixtures("quick")
def test_pair_form_calib_against_qat_says_that_weights_moved(tmp_path: Path) -> None:
    calib, qat = (calibrated(nets.SharedBlock().eval(), "fx", X) for _ in range(2))
    report = profile(calib, qat, "CvsQ", tmp_path)
    assert any("weights moved" in note for note in report.data.notes)
    assert report.data.main is not None
    assert report.data.main.mode == "CvsQ"


@pytest.mark.usefixtures("quick")
def test_pair_form_takes_a_model_in_any_state_and_measures_with_fake_quant_on(tmp_path: Path) -> None:
    reference, calib, _ = stages(nets.SharedConv().eval(), "fx", X)
    expected = profile(reference, calib, "FvsQ", tmp_path / "a").layers
    set_fake_quantize(calib, FakeQuantState._FLOAT)
    report = profile(reference, calib.train(), "FvsQ", tmp_path / "b")
    assert report.layers == expected


@pytest.mark.usefixtures("quick")
def test_pair_form_keeps_effects_and_journal_of_a_traced_model(tmp_path: Path) -> None:
    reference, calib, _ = stages(nets.SharedConv().eval(), "fx", X)
    report = profile(reference, calib, "FvsQ", tmp_path)
    assert report.data.effects
    assert any("CALIBRATION" in line for line in report.data.journal)


@pytest.mark.usefixtures("quick")
def test_pair_form_evaluates_both_stages(tmp_path: Path) -> None:
    reference, calib, _ = stages(nets.SharedConv().eval(), "fx", X)
    report = profile(reference, calib, "FvsQ", tmp_path, evaluate=lambda model: float(model(X).abs().mean()))
    assert [m.stage for m in report.stage_metrics] == ["float", "calib"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "example", [X, (X,), [X], {"x": X}, (X, torch.zeros(2))], ids=["x", "tuple", "list", "dict", "labels"]
)
def test_pair_form_example_inputs_of_any_kind(example: Any, tmp_path: Path) -> None:
    reference, calib, _ = stages(nets.SharedConv().eval(), "fx", X)
    report = model_profiler(reference, calib, example, "FvsQ", tmp_path)
    assert report.coverage.compared == 5


@pytest.mark.parametrize(
    ("error", "parts", "change"),
    [
        (ConfigError, ["mode is None", "'FvsQ'", "'QvsQ'", "'CvsQ'"], {"mode": None}),
        (ConfigError, ["mode is 'fvsq'", "expected 'FvsQ'"], {"mode": "fvsq"}),
        (ConfigError, ["mode QvsQ", "(no fake quants, prepared", "expected (prepared", "order"], {"mode": "QvsQ"}),
        (ConfigError, ["mode CvsQ", "expected (prepared (has fake quants), prepared"], {"mode": "CvsQ"}),
        (ConfigError, ["example_inputs is missing", "one batch"], {"example_inputs": None}),
        (ConfigError, ["unknown tools ['similarity']", "featuremap_similarity"], {"kwargs_dict": {"similarity": {}}}),
        (ConfigError, ["kwargs_dict['compare_weights']", "model"], {"kwargs_dict": {"compare_weights": {"model": 1}}}),
        (ConfigError, ["march 'mars'", "bayes"], {"march": "mars"}),
        (ConfigError, ["qconfig_dict", "leave it out"], {"qconfig_dict": {}}),
        (DataError, ["batch 0 is str", "expected a tensor"], {"example_inputs": "x"}),
        (
            DataError,
            ["float model, batch 0 ((2, 5, 6, 6)", "the last op that began was"],
            {"example_inputs": images(2, 5, 6, 6)},
        ),
        (ReportError, ["cannot be written", "pass another"], {"out_dir": Path(__file__) / "out"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_pair_form_bad_arguments(error: Any, parts: list[str], change: dict[str, Any], tmp_path: Path) -> None:
    reference, calib, _ = stages(nets.SharedConv().eval(), "fx", X)
    arguments = {"example_inputs": X, "mode": "FvsQ", "out_dir": tmp_path, **change}

    def run() -> None:
        with pytest.raises(error) as raised:
            model_profiler(reference, calib, **arguments)
        assert [part for part in parts if part not in str(raised.value)] == [], str(raised.value)

    assert_untouched(reference, lambda: assert_untouched(calib, run))


def test_pair_form_two_float_models_say_why_not() -> None:
    with pytest.raises(ConfigError, match=r"no fake quants, no fake quants\); expected \(no fake quants, prepared"):
        model_profiler(nets.SharedConv(), nets.SharedConv(), X, "FvsQ")


def test_pair_form_nan_in_the_second_model() -> None:
    reference, calib, _ = stages(nets.SharedConv().eval(), "fx", X)
    with torch.no_grad():
        calib.conv.weight[0] = torch.nan
    with pytest.raises(ModelError, match=r"conv\.weight: 3 of 9 values"):
        model_profiler(reference, calib, X, "FvsQ")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_prepared_model_is_compared_with_itself_and_not_changed(front_end: str, tmp_path: Path) -> None:
    calib = calibrated(nets.SharedBlock().eval(), front_end, X)
    report = assert_untouched(calib, lambda: model_profiler(calib, [X, X], out_dir=tmp_path))
    assert [c.mode for c in report.data.comparisons] == ["FvsQ", "QvsQ"]
    assert not {"ST9", "ST12"} & {f.id for f in report.findings}
    assert any("fake quant off" in note for note in report.data.notes)
    assert report.data.effects
    assert [e[0] for e in report.data.state.events] == ["CALIBRATION", "VALIDATION"]


def scrubbed(data: ReportData) -> ReportData:
    return dataclasses.replace(data, created="")


@pytest.mark.usefixtures("quick")
def test_two_runs_give_equal_records(tmp_path: Path) -> None:
    model = nets.ConvBnRelu().eval()
    data = [images(2, 3, 6, 6, seed=seed) for seed in range(3)]
    first, second = (model_profiler(model, data, out_dir=tmp_path / name) for name in "ab")
    assert scrubbed(first.data) == scrubbed(second.data)
    assert len(first.data.fingerprints["weights"]) == 64


def test_report_is_complete_and_reads_back(tmp_path: Path) -> None:
    report = model_profiler(nets.ConvBnRelu().eval(), X, out_dir=tmp_path)
    assert ProfileReport.load(tmp_path).data == report.data
    assert report.html_path == tmp_path / "profiler.html"
    assert report.zip_path == tmp_path / "profiler.zip"
    written = {path.name for path in tmp_path.rglob("*")}
    for name in ("similarity.txt", "ordered_op_error_similarity.txt", "model0_statistic.txt", "model1_statistic.txt",
                 "weight_comparison.txt", "qconfig_info.txt", "findings.txt", "report.json"):  # fmt: skip
        assert name in written
    assert len(report.frame("similarity")) > 0
    assert report.data.versions["torch"] == torch.__version__


@pytest.mark.usefixtures("quick")
def test_progress_tells_every_step_to_its_end(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    model_profiler(
        nets.SharedConv(), [X, X], out_dir=tmp_path, progress=lambda *a: told.append(a), evaluate=lambda model: 1.0
    )
    steps = list(dict.fromkeys(step for step, _, _ in told))
    assert steps == [
        "evaluate", "prepare", "calibrate", "compare float with calib", "compare calib with quantized",
        "write the report",
    ]  # fmt: skip
    for step in steps:
        counts = [(done, total) for name, done, total in told if name == step]
        assert counts[0][0] == 0
        assert counts[-1][0] == counts[-1][1] > 0, step
    assert [c for c in told if c[0] == "calibrate"] == [("calibrate", i, 2) for i in range(3)]
