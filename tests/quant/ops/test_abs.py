from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.quant.op_forms import (
    assert_codes_equal,
    assert_nearly_same_codes,
    assert_within_one_step,
    fake_quantized_float64,
    on_grid,
    quantized,
)
from tests.quant.ops.arithmetic_cases import (
    RANGES,
    S,
    check_gradients,
    check_in_networks,
    function_forms,
    real,
    rounded,
)
from tests.quant.ops.table_cases import every_code


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("x_scale", [0.02, 0.03141593, 0.5])
def test_abs_every_code_equals_arithmetic(dtype: str, x_scale: float) -> None:
    x_q = every_code(dtype)
    fake, integer = function_forms("abs", 0.02, dtype)
    result = integer(quantized(x_q, x_scale, dtype))
    assert_codes_equal(result, rounded(np.abs(x_q.numpy().astype(S)) * (S(x_scale) / S(0.02)), dtype), dtype)
    y_fq = fake(on_grid(x_q, x_scale, dtype))
    assert_nearly_same_codes(
        y_fq, result, 0.999 if dtype == "qint8" else 0.998
    )  # int16 codes take 16 of float32's 24 bits
    if dtype == "qint8":
        assert_within_one_step(y_fq, fake_quantized_float64(np.abs(real(x_q, x_scale)), 0.02), float(S(0.02)))


def test_abs_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.abs, "abs", torch.randn(3, 4))


@pytest.mark.parametrize("spelling", [lambda m, x: abs(x), lambda m, x: x.abs(), lambda m, x: (x * 2).abs_()])
def test_abs_in_networks(spelling: object) -> None:
    check_in_networks(spelling, "abs_0")  # type: ignore[arg-type]
