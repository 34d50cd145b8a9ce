"""HP1: an output left in int8."""

from __future__ import annotations

import copy

import pytest

from profiler.analysis.findings.configuration import quantized_output
from profiler.records import LayerRecord
from tests.analysis.made import context, layer, output, qparams, state
from tests.analysis.toys import PlainCnn, built, calibrated, configured, findings_of, headlines, images

BATCHES = images()


def test_int8_output_is_found_and_nothing_else_and_the_patch_repairs_it() -> None:
    model = configured(built(PlainCnn()), out_qconfig=None)
    (finding,) = findings_of(calibrated(copy.deepcopy(model), BATCHES), BATCHES)
    assert (finding.id, finding.severity, finding.op) == ("HP1", "W", "fc")

    assert finding.patch is not None
    exec(finding.patch.code, {"model": model})

    assert findings_of(calibrated(model, BATCHES), BATCHES) == ()


def test_high_precision_output_is_not_found() -> None:
    assert headlines(findings_of(calibrated(configured(built(PlainCnn())), BATCHES), BATCHES)) == []


def stub(*inputs: str) -> LayerRecord:
    return layer("dequant", inputs, kind="dequant_stub", qparams=None)


def test_hp1_looks_through_reshapes() -> None:
    reshape = layer("flatten_0", ("conv",), kind="shape")

    (finding,) = quantized_output(context(layer("conv"), reshape, stub("flatten_0"), output("dequant")))

    assert finding.op == "conv"


@pytest.mark.parametrize("dtype", ["qint16", None])
def test_hp1_ignores_outputs_that_are_fine(dtype: str | None) -> None:
    conv = layer("conv", qparams=qparams(dtype=dtype) if dtype else None)

    assert list(quantized_output(context(conv, stub("conv")))) == []


def test_hp1_ignores_an_op_with_a_quantized_reader() -> None:
    assert list(quantized_output(context(layer("conv"), stub("conv"), layer("next", ("conv",))))) == []


def test_hp1_of_a_shared_op_is_said_once_and_only_if_all_calls_end_there() -> None:
    calls = (layer("conv"), layer("conv(1)"))

    assert len(list(quantized_output(context(*calls, stub("conv", "conv(1)"))))) == 1
    assert list(quantized_output(context(*calls, stub("conv"), layer("next", ("conv(1)",))))) == []


def test_patch_takes_the_qconfig_of_the_models_purpose() -> None:
    for purpose in ("calib", "qat"):
        (finding,) = quantized_output(context(layer("conv"), stub("conv"), state=state(purpose=purpose)))
        assert finding.patch is not None
        assert f"default_{purpose}_8bit_weight_32bit_out_fake_quant_qconfig" in finding.patch.code
