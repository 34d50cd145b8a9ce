"""RG1, RG2, RG7: on real toys with one fault, on their near misses, and at the limits on hand-made records."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import Tensor, nn

from profiler.analysis.findings.numbers import clipped, too_few_codes, uneven_channels
from profiler.quant import FixedScaleObserver, get_default_qconfig
from profiler.records import Finding
from tests.analysis.made import channels, context, layer, output, qparams, quant_error, state, stats
from tests.analysis.toys import (
    CHANNELS,
    MIN_MAX_QCONFIG,
    Chain,
    PlainCnn,
    built,
    calibrated,
    configured,
    findings_of,
    headlines,
    images,
    layer_of,
)

BATCHES = images()
ONE = images(1)


def chain(*gains: float, threshold: float = 0.0) -> nn.Module:
    return configured(built(Chain(gains, threshold)), MIN_MAX_QCONFIG)


def found(model: nn.Module, batches: list[Tensor] = ONE) -> tuple[Finding, ...]:
    return findings_of(calibrated(copy.deepcopy(model), batches), batches)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (chain(60.0, threshold=1.5), [("RG1", "W", "wide")]),
        (chain(1000.0, threshold=2.5), [("RG1", "E", "wide")]),
        (chain(*[30.0] * 8), [("RG7", "W", "wide")]),
        (chain(*[4.0] * 8), []),
        (chain(3.0, threshold=1.5), []),
        (chain(), []),
    ],
    ids=["rare channel", "very rare channel", "wide channels", "near miss of wide", "near miss of rare", "healthy"],
)
def test_range_is_found_and_nothing_else(model: nn.Module, expected: list[object]) -> None:
    assert headlines(found(model)) == expected


def test_size_alone_is_information() -> None:
    findings = found(chain(*[100.0] * CHANNELS))

    assert [(f.id, f.severity, f.op, f.patch) for f in findings] == [("RG1", "I", "wide", None)]


@pytest.mark.parametrize("model", [chain(60.0, threshold=1.5), chain(*[30.0] * 8)], ids=["RG1", "RG7"])
def test_int16_patch_runs_and_the_finding_is_gone(model: nn.Module) -> None:
    (finding,) = [f for f in found(model) if f.severity == "W"]

    assert finding.patch is not None
    exec(finding.patch.code, {"model": model})

    assert headlines(found(model)) == []
    params = layer_of(calibrated(model, ONE), ONE, "wide").qparams
    assert params is not None
    assert params.dtype == "qint16"


def fixed(share: float) -> nn.Module:
    """The first conv's scale covers that share of its range."""
    full = layer_of(calibrated(configured(built(PlainCnn())), BATCHES), BATCHES, "first.0").reference_output
    assert full is not None
    model = configured(built(PlainCnn()))
    scale = share * full.absmax / 127.5
    model.first[0].qconfig = get_default_qconfig(  # type: ignore[index,union-attr]
        activation_qkwargs={"observer": FixedScaleObserver, "scale": scale}
    )
    return model


@pytest.mark.parametrize(("share", "severities"), [(0.6, ["W"]), (0.3, ["E"]), (0.95, [])])
def test_clipping_scale_is_found_and_nothing_else(share: float, severities: list[str]) -> None:
    assert headlines(found(fixed(share), BATCHES)) == [("RG2", s, "first.0") for s in severities]


def test_fixed_scale_patch_runs_and_the_finding_is_gone() -> None:
    model = fixed(0.3)
    (finding,) = found(model, BATCHES)

    assert finding.patch is not None
    exec(finding.patch.code, {"model": model})

    assert found(model, BATCHES) == ()


def with_error(**fields: Any) -> Any:
    return context(layer("conv", quant_error=quant_error(**fields)), output("conv"))


@pytest.mark.parametrize(("codes", "severity"), [(3.0, None), (2.999, "W"), (1.0, "W"), (0.999, "E")])
def test_rg1_limits(codes: float, severity: str | None) -> None:
    assert [f.severity for f in too_few_codes(with_error(codes_per_std=codes))] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("sqnr_db", "clip", "severity"),
    [(30.0, 2.0, None), (29.99, 2.0, "W"), (20.0, 2.0, "W"), (19.99, 2.0, "E"), (10.0, 1.0, None)],
)
def test_rg2_limits(sqnr_db: float, clip: float, severity: str | None) -> None:
    found = list(clipped(with_error(sqnr_db=sqnr_db, clip=clip, rounding=1.0)))

    assert [f.severity for f in found] == ([severity] if severity else [])


def test_rg1_and_rg2_never_speak_of_one_layer_together() -> None:
    both = with_error(codes_per_std=2.0, clip=2.0, sqnr_db=15.0)  # clipped and coarse: neither remedy alone helps

    assert list(too_few_codes(both)) == list(clipped(both)) == []


def test_rg2_scale_covers_the_reference() -> None:
    (finding,) = clipped(
        context(layer("conv", quant_error=quant_error(clip=900.0, sqnr_db=15.0), reference_output=stats(-51, 10)))
    )

    assert finding.patch is not None
    assert finding.patch.arguments["scale"] == pytest.approx(51 / 127.5)


def test_rg2_is_silent_where_a_scale_that_covers_the_range_loses_more() -> None:
    scale = layer("conv").qparams.scale[0]  # type: ignore[union-attr]
    wide = stats(-10 * scale * 127.5, 10)  # covering it takes 10 times the scale: 100 times the rounding energy

    def found(clip: float) -> int:
        error = quant_error(clip=clip, rounding=1.0, sqnr_db=15.0)
        return len(list(clipped(context(layer("conv", quant_error=error, reference_output=wide)))))

    assert (found(clip=90.0), found(clip=110.0)) == (0, 1)


@pytest.mark.parametrize(
    ("num_coarse", "spread", "is_found"), [(25, 100.0, False), (26, 100.0, True), (26, 7.99, False), (26, 8.0, True)]
)
def test_rg7_limits(num_coarse: int, spread: float, is_found: bool) -> None:
    uneven = layer("conv", test_output=stats(channels=channels(100, num_coarse, spread)))

    assert bool(list(uneven_channels(context(uneven)))) == is_found


def test_rg7_needs_four_live_channels() -> None:
    few = layer("conv", test_output=stats(channels=channels(3, 3, 100.0)))

    assert list(uneven_channels(context(few))) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"qparams": qparams(dtype="qint16")},
        {"qparams": qparams(is_calibrated=False)},
        {"qparams": None},
        {"kind": "relu"},
        {"kind": "quant_stub"},
        {"reference_output": stats(1.0, 1.0, 0.0)},
    ],
    ids=["int16", "uncalibrated", "float", "hands on its scale", "input", "constant"],
)
def test_rg1_ignores(fields: dict[str, Any]) -> None:
    coarse = layer("conv", **{"quant_error": quant_error(codes_per_std=0.5), **fields})

    assert [f for f in too_few_codes(context(coarse)) if f.severity != "I"] == []


def test_rg1_of_a_shared_op_speaks_of_the_worst_call() -> None:
    calls = [layer("conv", quant_error=quant_error(2.5)), layer("conv(1)", quant_error=quant_error(0.5))]

    (finding,) = too_few_codes(context(*calls))

    assert (finding.severity, finding.op) == ("E", "conv")


@pytest.mark.parametrize(("absmax", "is_found"), [(16.0, False), (16.1, True)])
def test_large_range_is_information_above_16_medians(absmax: float, is_found: bool) -> None:
    layers = [layer(f"op{i}") for i in range(6)] + [layer("big", reference_output=stats(-absmax, absmax))]

    assert [(f.severity, f.op) for f in too_few_codes(context(*layers))] == ([("I", "big")] if is_found else [])


def test_patch_takes_the_qconfig_of_the_models_purpose() -> None:
    coarse = layer("conv", quant_error=quant_error(0.5))

    (finding,) = too_few_codes(context(coarse, state=state(purpose="qat")))

    assert finding.patch is not None
    assert "default_qat_16bit_fake_quant_qconfig" in finding.patch.code


def test_patch_of_a_function_names_the_op_in_a_qconfig_dict() -> None:
    coarse = layer("block.add_0", quant_error=quant_error(0.5), reference_type="torch.add", kind="add")

    (finding,) = too_few_codes(context(coarse))

    assert finding.patch is not None
    scope: dict[str, Any] = {}
    exec(finding.patch.code, scope)
    assert set(scope["qconfig_dict"]) == {"", "module_name"}
    assert list(scope["qconfig_dict"]["module_name"]) == ["block.add_0"]
