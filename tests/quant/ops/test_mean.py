from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from profiler.quant import FloatFunctional
from tests.quant.integer_reference import INT8, INT16, requantized
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

S = np.float32
X_SCALE, OUT_SCALE = 0.05, 0.0137
DIMS: list[dict[str, Any]] = [
    {"dim": 1}, {"dim": -1}, {"dim": (2, 3)},
    {"dim": [2, 3], "keepdim": True}, {"dim": (0, -1)}, {}, {"dim": 1, "keepdim": True},
]  # fmt: skip


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_mean_integer_form_equals_integer_arithmetic(dims: dict[str, Any], dtype: str) -> None:
    x_q = codes((3, 5, 6, 7), dtype=dtype)
    _, integer = forms_of(FloatFunctional(), OUT_SCALE, dtype)
    axis = dims.get("dim")
    axis = tuple(axis) if isinstance(axis, list) else axis
    sums = x_q.numpy().astype(np.int64).sum(axis=axis, keepdims=dims.get("keepdim", False))
    count = x_q.numel() // max(np.size(sums), 1)
    multiplier = S(X_SCALE) / (S(OUT_SCALE) * S(count))
    expected = requantized(np.asarray(sums), multiplier, INT8 if dtype == "qint8" else INT16)
    assert_codes_equal(integer.mean(quantized(x_q, X_SCALE, dtype), **dims), expected, dtype)


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_mean_fake_quant_equals_formula_and_integer_form(dims: dict[str, Any]) -> None:
    x_q = codes((30, 20, 6, 7))
    fake, integer = forms_of(FloatFunctional(), OUT_SCALE)
    y_fq = fake.mean(on_grid(x_q, X_SCALE), **dims)
    real = (x_q.double() * float(S(X_SCALE))).mean(**dims).numpy()
    assert_within_one_step(y_fq, fake_quantized_float64(real, OUT_SCALE), OUT_SCALE, 0.998)
    assert_nearly_same_codes(y_fq, integer.mean(quantized(x_q, X_SCALE), **dims), 0.998)


def test_mean_with_numpy_names_equals_torch_names() -> None:
    x = quantized(codes((3, 5, 6, 7)), X_SCALE)
    _, integer = forms_of(FloatFunctional(), OUT_SCALE)
    named = integer.mean(x, axis=(2, 3), keepdims=True)
    assert_codes_equal(named, integer.mean(x, dim=(2, 3), keepdim=True).plain.numpy())
