from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.quant.integer_reference import INT16
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
from tests.quant.ops.average_cases import assert_front_ends_run_it
from tests.quant.ops.pool_cases import averaged

X_SCALE, OUT_SCALE = 0.0512345, 0.0238281  # a ratio that makes no ties
RATIO = np.float64(np.float32(X_SCALE)) / np.float64(np.float32(OUT_SCALE))


def adaptive_windows(size: int, count: int) -> list[tuple[int, int]]:
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def expected(x: np.ndarray, output_size: Any, code_range: tuple[int, int] = (-128, 127)) -> np.ndarray:
    sizes = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    rows, columns = (adaptive_windows(n, n if out is None else out) for n, out in zip(x.shape[-2:], sizes, strict=True))
    return averaged(x, rows, columns, RATIO, code_range=code_range)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    output_size=st.one_of(
        st.integers(1, 9), st.tuples(st.one_of(st.none(), st.integers(1, 9)), st.one_of(st.none(), st.integers(1, 9)))
    ),
)
def test_adaptive_avg_pool2d_integer_any_size_equals_integer_arithmetic(
    size: tuple[int, int], output_size: Any
) -> None:
    x_q = codes((2, 3, *size), size[0])
    _, integer = forms_of(nn.AdaptiveAvgPool2d(output_size), OUT_SCALE)
    assert_codes_equal(integer(quantized(x_q, X_SCALE)), expected(x_q.numpy(), output_size))


@pytest.mark.parametrize("output_size", [1, (2, 3), (None, 1), (5, 4)])
def test_adaptive_avg_pool2d_fake_quant_equals_formula_and_integer_form(output_size: Any) -> None:
    module, x_q = nn.AdaptiveAvgPool2d(output_size), codes((20, 30, 7, 9))
    fake, integer = forms_of(module, OUT_SCALE)
    y_fq = fake(on_grid(x_q, X_SCALE))
    real = module(x_q.double() * float(np.float32(X_SCALE))).numpy()
    assert_within_one_step(y_fq, fake_quantized_float64(real, OUT_SCALE), OUT_SCALE)
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, X_SCALE)), 0.998)


def test_adaptive_avg_pool2d_int16_and_empty_batch() -> None:
    _, integer = forms_of(nn.AdaptiveAvgPool2d(2), OUT_SCALE, "qint16")
    x_q = codes((2, 2, 9, 9), dtype="qint16")
    assert_codes_equal(integer(quantized(x_q, X_SCALE, "qint16")), expected(x_q.numpy(), 2, INT16), "qint16")
    assert integer(quantized(x_q[:0], X_SCALE, "qint16")).shape == (0, 2, 2, 2)


def test_adaptive_avg_pool2d_runs_in_both_front_ends_and_onnx_runtime() -> None:
    assert_front_ends_run_it(nn.AdaptiveAvgPool2d((3, 2)), (2, 3, 7, 8))
    assert_front_ends_run_it(nn.AdaptiveAvgPool2d(1), (2, 3, 7, 8))
