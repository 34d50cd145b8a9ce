"""SH1, FU1, IN2: on real toys with one fault, on their near misses, and at the limits on hand-made records."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from profiler.analysis.findings.structure import input_range, shared_op, unfused
from profiler.quant import FixedScaleObserver, QConfig, default_calib_8bit_fake_quant_qconfig, get_default_qconfig
from profiler.records import Finding, UnfusedGroup
from tests.analysis.made import context, layer, output, qparams, quant_error, stats
from tests.analysis.toys import (
    MIN_MAX_QCONFIG,
    PlainCnn,
    SharedConv,
    Unfused,
    built,
    calibrated,
    calibrated_fx,
    configured,
    findings_of,
    headlines,
    images,
)

BATCHES = images()


def found(
    toy: nn.Module, batches: list[Tensor] = BATCHES, qconfig: QConfig = default_calib_8bit_fake_quant_qconfig
) -> tuple[Finding, ...]:
    return findings_of(calibrated(configured(built(toy), qconfig), batches), batches)


@pytest.mark.parametrize(("ratio", "expected"), [(8.0, [("SH1", "E", "shared")]), (1.5, [])])
def test_shared_conv_on_different_ranges_is_found_and_nothing_else(ratio: float, expected: list[object]) -> None:
    findings = found(SharedConv(ratio))

    assert headlines(findings) == expected
    assert [f.id for f in findings] == ["SH1"]


def test_shared_conv_that_clips_nothing_is_a_warning_up_to_4_times() -> None:
    model = configured(built(SharedConv(3.0)))
    fixed = get_default_qconfig(activation_qkwargs={"observer": FixedScaleObserver, "scale": 0.1})
    model.shared.qconfig = fixed  # type: ignore[assignment,union-attr]

    assert headlines(findings_of(calibrated(model, BATCHES), BATCHES)) == [("SH1", "W", "shared")]


def test_shared_conv_patch_gives_a_copy_per_call() -> None:
    model = built(SharedConv(8.0))
    (finding,) = found(SharedConv(8.0))

    assert finding.patch is not None
    exec(finding.patch.code, {"model": model})

    assert torch.equal(model.shared_1.weight, model.shared.weight)
    assert model.shared_1 is not model.shared


@pytest.mark.parametrize(
    ("ratio", "cut_off_db", "severity"),
    [
        (2.0, None, "I"),
        (2.001, None, "W"),
        (4.0, None, "W"),
        (4.001, None, "E"),
        (1.0, 30.0, "I"),
        (1.0, 29.99, "W"),
        (2.5, 20.0, "W"),
        (1.0, 19.99, "E"),
    ],
)
def test_sh1_limits(ratio: float, cut_off_db: float | None, severity: str) -> None:
    error = quant_error() if cut_off_db is None else quant_error(clip=2.0, sqnr_db=cut_off_db)
    calls = [
        layer("conv", reference_output=stats(-ratio, ratio), quant_error=error),
        layer("conv(1)", ("conv",), reference_output=stats(-1.0, 1.0)),
    ]

    (finding,) = shared_op(context(*calls, output("conv(1)")))

    assert (finding.severity, finding.op) == (severity, "conv")


@pytest.mark.parametrize("kind", ["relu", "shape", "quant_stub", "dequant_stub"])
def test_sh1_ignores_ops_without_a_scale_of_their_own(kind: str) -> None:
    calls = [layer("op", kind=kind), layer("op(1)", kind=kind, reference_output=stats(-9, 9))]

    assert list(shared_op(context(*calls))) == []


def test_sh1_ignores_a_call_that_is_all_zero() -> None:
    calls = [layer("conv"), layer("conv(1)", reference_output=stats(0.0, 0.0, 0.0))]

    assert list(shared_op(context(*calls))) == []


@pytest.mark.parametrize("cause", ["not listed", "function", "shared", "second consumer"])
def test_unfused_group_is_found_with_its_cause_and_nothing_else(cause: str) -> None:
    findings = found(Unfused(cause))

    assert headlines(findings) == [("FU1", "W", "conv")]
    evidence = {e.name: str(e.value) for e in findings[0].evidence}
    assert cause in evidence["cause"]
    assert findings[0].patch is not None
    compile(findings[0].patch.code, "patch", "exec")


def test_fused_group_is_not_found() -> None:
    assert found(Unfused("none")) == ()


def test_fx_fuses_what_eager_cannot() -> None:
    for cause in ("not listed", "function"):
        assert headlines(findings_of(calibrated_fx(built(Unfused(cause)), BATCHES), BATCHES)) == []


def test_fuse_patch_runs_and_the_finding_is_gone() -> None:
    model = configured(built(Unfused("not listed")))
    (finding,) = findings_of(calibrated(copy.deepcopy(model), BATCHES), BATCHES)

    assert finding.patch is not None
    exec(finding.patch.code, {"model": model})

    assert findings_of(calibrated(model, BATCHES), BATCHES) == ()


def test_function_patch_says_what_to_type() -> None:
    (finding,) = found(Unfused("function"))

    assert finding.patch is not None
    assert "self.relu = nn.ReLU()" in finding.patch.code
    assert "fuse_modules(model, ['conv', 'relu'], inplace=True)" in finding.patch.code


def test_fuse_patch_of_a_hindered_group_changes_nothing_by_itself() -> None:
    for cause in ("function", "shared", "second consumer"):
        patch = found(Unfused(cause))[0].patch
        assert patch is not None
        assert all(line.startswith("#") for line in patch.code.splitlines())


@pytest.mark.parametrize(
    ("types", "cause", "severity"),
    [
        (("Conv2d", "ReLU"), "second consumer: the output of conv is also read by x", "I"),
        (("Conv2d", "BatchNorm2d"), "second consumer: the output of conv is also read by x", "W"),
        (("Conv2d", "ReLU"), "not listed for fusion", "W"),
    ],
)
def test_relu_behind_an_output_that_is_needed_before_it_is_information(
    types: tuple[str, ...], cause: str, severity: str
) -> None:
    group = UnfusedGroup(("conv", "next"), types, cause)

    (finding,) = unfused(context(layer("conv"), unfused=(group,)))

    assert finding.severity == severity


def test_one_sided_input_is_found_and_nothing_else() -> None:
    assert headlines(found(PlainCnn(), [(x - x.min()) * 30 for x in BATCHES])) == [("IN2", "W", "quant")]


def test_input_with_an_outlier_is_found_and_nothing_else() -> None:
    batches = [x.clone() for x in BATCHES]
    for batch in batches:
        batch[0, 0, 0, 0] = 20.0

    findings = found(PlainCnn(), batches, MIN_MAX_QCONFIG)

    assert headlines(findings) == [("IN2", "W", "quant")]
    assert findings[0].title == "The model input has few codes per standard deviation"


def test_input_around_0_is_not_found() -> None:
    assert headlines(found(PlainCnn(), [x * 100 for x in BATCHES])) == []


def test_normalise_patch_centres_the_input() -> None:
    finding = found(PlainCnn(), [(x - x.min()) * 30 for x in BATCHES])[0]
    low, high = (float(e.value) for e in finding.evidence[:2])

    assert finding.patch is not None
    scope = {"x": torch.tensor([low, high])}
    exec(finding.patch.code, scope)

    torch.testing.assert_close(scope["x"], torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "std", "is_found"),
    [
        (0.0, 1.0, 1.0, True),
        (-1e-3, 1.0, 1.0, False),
        (-1.0, 0.0, 1.0, True),
        (-1.0, 1.0, 0.8, False),  # 8 codes of 0.1 exactly
        (-1.0, 1.0, 0.799, True),
        (1.0, 1.0, 0.0, False),
    ],
)
def test_in2_limits(low: float, high: float, std: float, is_found: bool) -> None:
    stub = layer("quant", kind="quant_stub", reference_output=stats(low, high, std**2))

    assert bool(list(input_range(context(stub)))) == is_found


def test_in2_asks_nothing_of_an_int16_input() -> None:
    stub = layer("quant", kind="quant_stub", qparams=qparams(dtype="qint16"), reference_output=stats(0, 1))

    assert list(input_range(context(stub))) == []


def test_in2_looks_through_preprocessing_but_not_at_stubs_inside_the_network() -> None:
    quiet = {"qparams": None, "quant_error": None, "kind": ""}
    one_sided = {"kind": "quant_stub", "reference_output": stats(0, 1)}
    before = context(layer("div_0", **quiet), layer("quant", ("div_0",), **one_sided))
    inside = context(layer("conv"), layer("dequant", ("conv",), **quiet), layer("stub", ("dequant",), **one_sided))

    assert len(list(input_range(before))) == 1
    assert list(input_range(inside)) == []
