"""The multi-task sample: both heads accurate in float, one clipped by the other's data, and won back alone."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from profiler.quant import convert_fx, freeze_part, reset_part, set_march
from profiler.quant.states import named_fake_quants
from sample_models import SAMPLES, multitask, multitask_data
from sample_models.flows import FLOWS, calibrate
from sample_models.multitask import Accuracies
from sample_models.multitask_data import digit_batches, digit_canvases, quadrant_batches, quadrant_canvases
from sample_models.train_multitask import MultiTaskPlan, train
from sample_models.training import WEIGHTS_DIR
from tests.quant.onnx_check import assert_equals_onnx
from tests.sample_models.quantizing import int8_stages

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "multitask.md").read_text("utf-8")
README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
SMALLEST_STEP = 100 / multitask_data.NUM_TEST  # one canvas, which another CPU's rounding may move


@pytest.fixture(autouse=True)
def march() -> None:
    set_march("bayes")


@pytest.fixture(scope="module")
def float_accuracies() -> Accuracies:
    return multitask.accuracies(multitask.load())


@pytest.fixture(scope="module")
def common() -> nn.Module:
    """Everything calibrated with the digit task's canvases."""
    return calibrate(multitask.prepare(multitask.load()), multitask.calibration_batches())


@pytest.fixture(scope="module")
def mended(common: nn.Module) -> nn.Module:
    """The quadrant head calibrated anew with its own canvases, the rest frozen."""
    model = copy.deepcopy(common)
    freeze_part(model, ["backbone", "digit_head"])
    reset_part(model, "quadrant_head")
    return calibrate(model, quadrant_batches())


def test_sample_is_listed_and_small() -> None:
    assert SAMPLES["multitask"] == "sample_models.multitask"
    assert (WEIGHTS_DIR / "multitask.safetensors").stat().st_size < 1_000_000


def test_float_accuracy_of_both_heads_is_at_least_97_percent(float_accuracies: Accuracies) -> None:
    assert min(float_accuracies) >= 97.0


def test_common_calibration_keeps_the_digits_and_loses_the_quadrants(
    common: nn.Module, float_accuracies: Accuracies
) -> None:
    digit, quadrant = multitask.accuracies(common)
    assert float_accuracies.digit - digit <= 1.5
    assert float_accuracies.quadrant - quadrant >= 8.0
    assert multitask.evaluate(common) == quadrant


def test_calibrating_the_failing_head_alone_wins_it_back_in_fake_quant_and_integers(
    common: nn.Module, mended: nn.Module, float_accuracies: Accuracies
) -> None:
    before = multitask.accuracies(common)
    for stage in (mended, convert_fx(mended)):
        digit, quadrant = multitask.accuracies(stage)
        assert digit == before.digit
        assert quadrant - before.quadrant >= 8.0
        assert float_accuracies.quadrant - quadrant <= 1.5


def test_the_frozen_rest_computes_the_same_bits(common: nn.Module, mended: nn.Module) -> None:
    images = multitask_data.held_out_digits().images()[:64]
    with torch.no_grad():
        assert torch.equal(mended(images)[0], common(images)[0])
    scales = dict(named_fake_quants(common))
    moved = {
        name.split(".")[0] for name, fq in named_fake_quants(mended) if not torch.equal(fq.scale, scales[name].scale)
    }
    assert moved == {"quadrant_head"}


def test_the_head_fails_because_its_scores_are_cut_off(common: nn.Module, mended: nn.Module) -> None:
    def largest(model: nn.Module) -> float:
        fake_quant: Any = model.get_submodule("quadrant_head.score").activation_post_process
        return float(fake_quant.scale) * 127

    assert largest(mended) > 2 * largest(common)


@pytest.mark.parametrize("front_end", sorted(FLOWS))
def test_both_front_ends_reach_the_accuracy_with_the_canvases_of_both_tasks(
    front_end: str, float_accuracies: Accuracies
) -> None:
    for stage in int8_stages(multitask.flow_sample(), front_end):
        assert min(float_accuracies) - multitask.evaluate(stage) <= 1.5


@pytest.mark.parametrize("front_end", sorted(FLOWS))
def test_every_integer_equals_onnx_runtime(front_end: str) -> None:
    quantized = int8_stages(multitask.flow_sample(), front_end)[1].eval()
    assert_equals_onnx(quantized, torch.cat([digit_batches(1, 2)[0], quadrant_batches(1, 2)[0]]), num_codes=10)


def test_training_is_seeded_and_learns() -> None:
    plan = MultiTaskPlan(epochs=1, canvases=64, batch_size=16)
    first, second = train(plan), train(plan)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("make", [digit_canvases, quadrant_canvases])
def test_canvases_are_seeded_and_held_out_digits_differ(make: Any) -> None:
    canvases = make(8, seed=3)
    assert torch.equal(canvases.pixels, make(8, seed=3).pixels)
    assert not torch.equal(canvases.pixels, make(8, seed=4).pixels)
    assert not torch.equal(canvases.pixels, make(8, seed=3, is_train=False).pixels)
    assert canvases.images().shape == (8, 1, 64, 64)


def test_the_brightest_quarter_is_mostly_the_labelled_quadrant() -> None:
    canvases = quadrant_canvases(200, seed=5)
    ink = (canvases.pixels.float() > 150).float().squeeze(1)
    quarters = ink.reshape(200, 2, 32, 2, 32).sum(dim=(2, 4)).flatten(1)
    assert float((quarters.argmax(1) == canvases.labels).float().mean()) > 0.7


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the code of docs/multitask.md leaves behind."""
    names: dict[str, Any] = {}
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("document"))
        exec(code, names)
    return names


def row(start: str) -> list[float]:
    """The numbers of a row of the document's table."""
    (line,) = [line for line in DOCUMENT.splitlines() if line.startswith(f"| {start} |")]
    return [float(cell) for cell in line.split("|")[2:-1]]


def test_document_table_is_what_its_code_gives(names: dict[str, Any], float_accuracies: Accuracies) -> None:
    close = {"abs": 2 * SMALLEST_STEP + 0.01}
    quantized = multitask.accuracies(names["quantized"])
    assert row("(float)") == pytest.approx(list(float_accuracies), **close)
    assert row("digit canvases for all") == pytest.approx(list(names["before"]), **close)
    alone = row("then the quadrant head alone with quadrant canvases")
    assert alone == pytest.approx(list(names["after"]), **close)
    assert alone == pytest.approx(list(quantized), **close)
    both = calibrate(multitask.prepare(multitask.load()), digit_batches() + quadrant_batches())
    assert row("canvases of both tasks for all") == pytest.approx(list(multitask.accuracies(both)), **close)


def test_readme_row_is_what_the_demo_profiles(common: nn.Module, mended: nn.Module) -> None:
    (line,) = [line for line in README.splitlines() if line.startswith("| `multitask`")]
    alone = re.search(r"\(([\d.]+) when", line)
    assert alone is not None
    stated = [*(float(cell) for cell in line.split("|")[2:-1]), float(alone[1])]
    stages = (multitask.load(), common, convert_fx(common), mended)
    assert stated == pytest.approx([multitask.evaluate(m) for m in stages], abs=2 * SMALLEST_STEP + 0.01)


def test_document_output_sqnr_is_what_its_code_gives(names: dict[str, Any]) -> None:
    stated = re.search(r"the digits have ([\d.]+) dB and the quadrants ([\d.]+) dB", DOCUMENT)
    assert stated is not None
    given = [names["sqnr_db"][task] for task in ("digit", "quadrant")]
    assert [float(value) for value in stated.groups()] == pytest.approx(given, abs=1.0)


def test_document_report_names_the_place(names: dict[str, Any]) -> None:
    found = {(finding.id, finding.op) for finding in names["report"].findings}
    assert ("RG2", "quadrant_head.score") in found
