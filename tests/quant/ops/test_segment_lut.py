from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from profiler.errors import ConfigError
from profiler.quant import DeQuantStub, QuantStub, SegmentLUT, convert, default_calib_16bit_fake_quant_qconfig
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, forms_of, on_grid, quantized
from tests.quant.ops.table_cases import OneFunction, codes_of, every_code, real_values
from tests.quant.stages import FRONT_ENDS, eager

INT16_SCALE = 4 / 32768
SHAPES: dict[str, dict[str, Any]] = {
    "evenly": {}, "curvature": {"auto_divide_strategy": "curvature"}, "mirrored": {"is_centrosymmetric": True},
    "points": {"dividing_points": [-2, -1, -0.5, 0, 0.5, 1, 2, 4]}, "few": {"num_entries_per_table": 4},
}  # fmt: skip


def test_segment_lut_float_is_the_function() -> None:
    x = torch.linspace(-3, 3, 50)
    assert torch.equal(SegmentLUT(torch.tanh)(x), torch.tanh(x))


@pytest.mark.parametrize("name", SHAPES)
def test_segment_lut_int8_is_exact(name: str) -> None:
    fake, integer = forms_of(SegmentLUT(torch.tanh, **SHAPES[name]), 1 / 127.5)
    y = integer(quantized(every_code("qint8"), 0.03))
    assert_codes_equal(y, codes_of(np.tanh(real_values("qint8", 0.03)), 1 / 127.5))
    assert_nearly_same_codes(fake(on_grid(every_code("qint8"), 0.03)), y)


@pytest.mark.parametrize("name", SHAPES)
def test_segment_lut_int16_is_piecewise_linear_between_nodes_of_the_function(name: str) -> None:
    module = SegmentLUT(torch.tanh, **SHAPES[name])
    fake, integer = forms_of(module, 1 / 32767.5, "qint16")
    x = quantized(every_code("qint16"), INT16_SCALE, "qint16")
    nodes = module.segments.over(x).nodes()[0].numpy()
    assert (np.diff(nodes) > 0).all()
    real = np.interp(real_values("qint16", INT16_SCALE), nodes, np.tanh(nodes))
    y = integer(x)
    apart = np.abs(y.plain.numpy().astype(np.int64) - codes_of(real, 1 / 32767.5, "qint16"))
    assert apart.max() <= 1
    assert (apart == 0).mean() >= 0.9999
    assert_nearly_same_codes(fake(on_grid(every_code("qint16"), INT16_SCALE, "qint16")), y, 0.95)


def test_segment_lut_by_curvature_is_nearer_than_evenly() -> None:
    def sharp(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-20 * x.abs())

    errors = {}
    for strategy in ("evenly", "curvature"):
        _, integer = forms_of(SegmentLUT(sharp, auto_divide_strategy=strategy), 1 / 32767.5, "qint16")
        y = integer(quantized(every_code("qint16"), INT16_SCALE, "qint16")).dequantize().double().numpy()
        errors[strategy] = float(
            np.sqrt(np.square(y - np.exp(-20 * np.abs(real_values("qint16", INT16_SCALE)))).mean())
        )
    assert errors["curvature"] < 0.6 * errors["evenly"]


def test_segment_lut_beyond_its_range_goes_on_with_the_gradients_or_stays() -> None:
    x = quantized(every_code("qint16"), INT16_SCALE, "qint16")
    for gradients, end in ((None, 1.0), ((0.5, 0.25), 1.75)):
        module = SegmentLUT(lambda v: v, input_range=(-1, 1), gradients=gradients)
        _, integer = forms_of(module, 3 / 32767.5, "qint16")
        y = integer(x).dequantize()
        assert abs(float(y[-1]) - end) < 2e-3
        real = real_values("qint16", INT16_SCALE)
        np.testing.assert_allclose(y.numpy()[abs(real) < 1], real[abs(real) < 1], atol=1e-4)


def test_segment_lut_runs_in_both_front_ends_and_equals_onnx_runtime() -> None:
    x = torch.linspace(-3, 3, 600).reshape(20, 30)
    for stage, to_integers in FRONT_ENDS.values():
        for qconfig_args in ((), (default_calib_16bit_fake_quant_qconfig,)):
            calib = stage(OneFunction(SegmentLUT(torch.sigmoid)), [x], *qconfig_args)
            converted = to_integers(calib)
            torch.testing.assert_close(converted(x), torch.sigmoid(x), rtol=0, atol=0.02)
            torch.testing.assert_close(converted(x), calib(x), rtol=0, atol=0.01)
            assert_equals_onnx(converted, x, num_codes=2)


def test_segment_lut_function_with_a_pole_trains() -> None:
    model: Any = OneFunction(SegmentLUT(torch.log))
    x = torch.linspace(0, 4, 200)
    calib = eager(model, [x])
    leaf = x.clone().requires_grad_()
    calib(leaf).sum().backward()
    assert leaf.grad is not None
    assert bool(torch.isfinite(leaf.grad).all())
    assert bool(torch.isfinite(convert(calib)(x)).all())
    assert isinstance(model.quant, QuantStub)
    assert isinstance(model.dequant, DeQuantStub)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"dividing_points": [1, 2]}, "expected 8 increasing numbers"),
    ({"auto_divide_strategy": "random"}, "use one of"),
    ({"input_range": [1]}, "expected two numbers"),
    ({"num_entries_per_table": 0}, "expected at least 1"),
])  # fmt: skip
def test_segment_lut_arguments_that_cannot_be_used_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentLUT(torch.tanh, **arguments)
