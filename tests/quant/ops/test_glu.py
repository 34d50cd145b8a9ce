from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from profiler.quant.affine import qinfo
from tests.quant.op_forms import (
    assert_codes_equal,
    assert_nearly_same_codes,
    assert_within_one_step,
    codes,
    fake_quantized_float64,
    forms_of,
    on_grid,
    quantized,
)
from tests.quant.ops.arithmetic_cases import check_gradients, check_in_networks, every_pair, function_forms, real
from tests.quant.ops.parameter_cases import check_front_ends


def gated(x: np.ndarray, axis: int) -> np.ndarray:
    """The formula in float64, gates on both sides of 0 without overflow."""
    value, gate = np.split(x, 2, axis)
    return value * np.where(
        gate >= 0, 1 / (1 + np.exp(-np.abs(gate))), np.exp(-np.abs(gate)) / (1 + np.exp(-np.abs(gate)))
    )


def expected_codes(x: np.ndarray, axis: int, scale: float, dtype: str) -> np.ndarray:
    info = qinfo(dtype)
    return np.clip(np.rint(gated(x, axis) / np.float64(np.float32(scale))), info.quant_min, info.quant_max)


@pytest.mark.parametrize(("x_scale", "out_scale"), [(0.03, 0.02), (0.11, 0.1), (1e-3, 4e-4), (5.0, 5.0)])
def test_glu_every_pair_of_value_and_gate(x_scale: float, out_scale: float) -> None:
    value, gate = every_pair()
    x_q = torch.cat([value, gate])
    fake, integer = function_forms("glu", out_scale)
    result = integer(quantized(x_q, x_scale), 0)
    assert_codes_equal(result, expected_codes(real(x_q, x_scale), 0, out_scale, "qint8").astype(np.int64))
    y_fq = fake(on_grid(x_q, x_scale), 0)
    assert_within_one_step(y_fq, fake_quantized_float64(gated(real(x_q, x_scale), 0), out_scale), out_scale)
    assert_nearly_same_codes(y_fq, result)


@pytest.mark.parametrize("dim", [1, -1])
def test_glu_integer_equals_float64_and_fake_quant(dim: int) -> None:
    module, shape = nn.GLU(dim), (5, 8, 6, 4)
    for x_dtype in ("qint8", "qint16"):
        for out_dtype in ("qint8", "qint16"):
            x_scale = {"qint8": 0.05, "qint16": 0.0004}[x_dtype]
            out_scale = 6.5 / qinfo(out_dtype).half_range
            x_q = codes(shape, dtype=x_dtype)
            fake, integer = forms_of(module, out_scale, out_dtype)
            y_q = integer(quantized(x_q, x_scale, x_dtype))
            assert_codes_equal(
                y_q, expected_codes(real(x_q, x_scale), dim, out_scale, out_dtype).astype(np.int64), out_dtype
            )
            assert_nearly_same_codes(fake(on_grid(x_q, x_scale, x_dtype)), y_q, 0.999 if out_dtype == "qint8" else 0.97)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    exponent=st.floats(-8, 8),
    data=st.integers(0, 99),
)
def test_glu_any_shape_and_scale(shape: list[int], axis: int, exponent: float, data: int) -> None:
    axis %= len(shape)
    shape[axis] *= 2
    scale = float(np.float32(10.0**exponent))
    x_q = codes(tuple(shape), data)
    _, integer = function_forms("glu", scale)
    result = integer(quantized(x_q, scale), axis - len(shape))
    half = [n // 2 if i == axis else n for i, n in enumerate(shape)]
    assert list(result.shape) == half
    apart = np.abs(result.plain.numpy() - expected_codes(real(x_q, scale), axis, scale, "qint8"))
    assert apart.size == 0 or apart.max() == 0


def test_glu_of_strided_codes_and_of_zeros() -> None:
    x_q = codes((6, 5, 4)).transpose(0, 2)
    _, integer = function_forms("glu", 0.05)
    result = integer(quantized(x_q, 0.05), 0)
    assert_codes_equal(result, expected_codes(real(x_q, 0.05), 0, 0.05, "qint8").astype(np.int64))
    assert int(integer(quantized(torch.zeros(2, 4, dtype=torch.int8), 0.05)).plain.abs().max()) == 0


def test_glu_gradients_are_those_of_the_float_function() -> None:
    check_gradients(F.glu, "glu", torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.mark.parametrize("body", [lambda m, x: F.glu(x, 1), lambda m, x: F.glu(x, dim=-1) * 2])
def test_glu_in_networks(body: Any) -> None:
    check_in_networks(body, "glu_0")


def test_glu_module_in_both_front_ends() -> None:
    for dtype in ("qint8", "qint16"):
        check_front_ends(nn.GLU(1), dtype)
