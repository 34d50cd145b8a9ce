from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from profiler.capture.lockstep import run_pair
from profiler.capture.stage import Stage
from profiler.errors import ConfigError
from profiler.quant import FakeQuantState, convert_fx, default_calib_8bit_fake_quant_qconfig, prepare_qat_fx
from profiler.quant import set_fake_quantize as set_state
from profiler.quant.affine import Requantization, qinfo
from profiler.quant.batches import Batch
from profiler.quant.requantize import (
    FLOAT32_EXACT,
    carrier_dtype,
    get_requantization,
    requantize,
    set_requantization,
    shifted_product,
)
from tests.quant.integer_reference import INT8, INT16, requantized
from tests.quant.op_forms import codes, forms_of, quantized


@pytest.mark.parametrize("multiplier", [1.0, 0.5, 0.25, 0.0039, 1 / 3, 2.0, 1e-6])
@pytest.mark.parametrize("carrier", [torch.int32, torch.float32, torch.float64])
def test_requantize_every_small_accumulator_equals_formula(multiplier: float, carrier: torch.dtype) -> None:
    acc = torch.arange(-70_000, 70_001)
    result = requantize(acc.to(carrier), torch.tensor(multiplier), qinfo("qint8"))
    assert result.dtype == torch.int8
    np.testing.assert_array_equal(result.numpy(), requantized(acc.numpy(), multiplier))


def test_requantize_ties_go_to_the_even_code() -> None:
    acc = torch.tensor([5, 7, -5, -7, 1, -1])
    assert requantize(acc, torch.tensor(0.5), qinfo("qint8")).tolist() == [2, 4, -2, -4, 0, 0]


@settings(max_examples=60, deadline=None)
@given(
    acc=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50),
    multiplier=st.floats(1e-9, 10),
    is_int8=st.booleans(),
)
def test_requantize_whole_int32_range_is_within_one_code_of_float64(
    acc: list[int], multiplier: float, is_int8: bool
) -> None:
    dtype, code_range = ("qint8", INT8) if is_int8 else ("qint16", INT16)
    result = requantize(torch.tensor(acc, dtype=torch.int32), torch.tensor(multiplier), qinfo(dtype)).numpy()
    exact = np.clip(np.rint(np.array(acc, np.float64) * np.float64(np.float32(multiplier))), *code_range)
    np.testing.assert_array_equal(result, requantized(np.array(acc), multiplier, code_range))
    assert np.abs(result.astype(np.int64) - exact).max() <= 1


def test_requantize_per_channel_multiplier_acts_along_its_axis() -> None:
    acc = torch.full((2, 3, 2), 100)
    result = requantize(acc, torch.tensor([0.1, 0.5, 1.0]), qinfo("qint8"), 1)
    assert result[0, :, 0].tolist() == [10, 50, 100]


def test_requantize_limit_caps_codes_from_above_only() -> None:
    acc = torch.tensor([-500, 3, 60, 500])
    assert requantize(acc, torch.tensor(1.0), qinfo("qint8"), limit=torch.tensor(60.0)).tolist() == [-128, 3, 60, 60]


def test_carrier_dtype_leaves_float32_at_its_exact_bound() -> None:
    assert carrier_dtype(FLOAT32_EXACT - 1) is torch.float32
    assert carrier_dtype(FLOAT32_EXACT) is torch.float64


def test_carrier_dtype_reduced_precision_products_refuse_float32() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        assert carrier_dtype(10) is torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")


FIXED, FIXED_UP = Requantization("fixed_point"), Requantization("fixed_point", "half_up")


@pytest.fixture
def _default_again() -> Iterator[None]:
    yield
    set_requantization()


@pytest.mark.parametrize(("method", "ties", "expected"), [
    ("float32", "half_even", [2, 4, -2, -4, 0, 0]), ("float32", "half_up", [3, 4, -2, -3, 1, 0]),
    ("fixed_point", "half_even", [2, 4, -2, -4, 0, 0]), ("fixed_point", "half_up", [3, 4, -2, -3, 1, 0]),
])  # fmt: skip
def test_r8_ties_of_each_method(method: str, ties: str, expected: list[int]) -> None:
    info = replace(qinfo("qint8"), requantization=Requantization(method, ties))
    assert requantize(torch.tensor([5, 7, -5, -7, 1, -1]), torch.tensor(0.5), info).tolist() == expected


@settings(max_examples=150, deadline=None)
@given(
    acc=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50),
    multiplier=st.one_of(st.floats(1e-12, 10), st.floats(1e-30, 1e30), st.sampled_from([2.0**-k for k in range(70)])),
    is_int8=st.booleans(),
    is_half_up=st.booleans(),
    sign=st.sampled_from([1, -1]),
)
def test_fixed_point_equals_exact_fractions_and_is_within_one_code_of_float(
    acc: list[int], multiplier: float, is_int8: bool, is_half_up: bool, sign: int
) -> None:
    dtype, (lowest, highest) = ("qint8", INT8) if is_int8 else ("qint16", INT16)
    info = replace(qinfo(dtype), requantization=FIXED_UP if is_half_up else FIXED)
    m = torch.tensor(sign * multiplier)
    exact = [Fraction(a) * Fraction(float(m)) for a in acc]
    rounded = [(f + Fraction(1, 2)).__floor__() if is_half_up else round(f) for f in exact]
    result = requantize(torch.tensor(acc), m, info)
    assert result.tolist() == [min(max(r, lowest), highest) for r in rounded]
    for ties in ("half_even", "half_up"):
        other = replace(info, requantization=Requantization("float32", ties))
        apart = requantize(torch.tensor(acc), m, other).to(torch.int64) - result.to(torch.int64)
        assert int(apart.abs().max()) <= 1


def test_fixed_point_beyond_int32_saturates() -> None:
    assert shifted_product(torch.tensor([2.0**40, -(2.0**40)]), torch.tensor(2.0**-28)).tolist() == [8, -8]


@pytest.mark.parametrize("arguments", [("float64",), ("float32", "away"), (None,)])
def test_set_requantization_unknown_value_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        set_requantization(*arguments)
    assert get_requantization() == Requantization()


@pytest.mark.usefixtures("_default_again")
def test_converted_models_keep_the_requantization_they_were_made_with() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    x = torch.randn(4, 3, 24, 24)
    calib = prepare_qat_fx(model, {"": default_calib_8bit_fake_quant_qconfig}).eval()
    set_state(calib, FakeQuantState.CALIBRATION)
    calib(x)
    for module in calib.modules():  # steps that are powers of 2, so that many accumulators lie on a tie
        if hasattr(module, "set_qparams") and module.is_calibrated:
            module.set_qparams(2.0 ** torch.ceil(torch.log2(module.scale)))
    models = {}
    for method, ties in (("float32", "half_even"), ("fixed_point", "half_even"), ("fixed_point", "half_up")):
        set_requantization(method, ties)
        models[method, ties] = convert_fx(calib.eval())
    set_requantization()
    results = {key: converted(x) for key, converted in models.items()}
    base = results["float32", "half_even"]
    step = float((base - results["fixed_point", "half_up"]).abs().max())
    assert torch.equal(base, results["fixed_point", "half_even"])
    assert step > 0
    infos = [m.out_info for m in models["fixed_point", "half_up"].modules() if hasattr(m, "out_info")]
    assert {info.requantization for info in infos if info is not None} == {FIXED_UP}
    even, up = (Stage("quantized", models[key]) for key in (("float32", "half_even"), ("fixed_point", "half_up")))
    pairs = run_pair(even, up, [Batch((x,))]).pairs  # the profiler shows where: in the convolutions, not in the stub
    assert [pairs[name].accumulated.error_max > 0 for name in ("input_1_activation_post_process", "0", "2")] == [
        False, True, True,
    ]  # fmt: skip
    assert pairs["0"].accumulated.error_max == float(models["float32", "half_even"].get_submodule("0").out_scale)


def test_accumulator_beyond_int32_is_named_once_and_stays_exact(caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Linear(700, 2, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.5)
    _, integer = forms_of(module, None, "qint16")
    integer.op_name = "head.fc"
    x = torch.full((1, 700), -32768, dtype=torch.int16)
    with caplog.at_level(logging.WARNING):
        y = integer(quantized(x, 1.0, "qint16"))
        integer(quantized(x, 1.0, "qint16"))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["head.fc"]
    expected = np.float32(700 * 127 * -32768) * integer.weight_scale.numpy()
    np.testing.assert_array_equal(y.numpy()[0], expected)


def test_accumulator_within_int32_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    _, integer = forms_of(nn.Linear(64, 8), 0.1)
    integer(quantized(codes((2, 64)), 0.1))
    assert caplog.records == []
