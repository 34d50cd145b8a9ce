from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.quant.integer_reference import requantized
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_gradients, check_in_networks, function_forms


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("x_dtype", RANGES)
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("shape", [(3, 50, 6), (0, 5, 6)])
def test_cumsum_equals_arithmetic(dim: int, x_dtype: str, dtype: str, shape: Any) -> None:
    x_q = codes(shape, 0, x_dtype)
    _, integer = function_forms("cumsum", 0.7, dtype)
    sums = np.cumsum(x_q.numpy().astype(np.int64), dim)
    assert_codes_equal(
        integer(quantized(x_q, 0.05, x_dtype), dim), requantized(sums, S(0.05) / S(0.7), RANGES[dtype]), dtype
    )


def test_cumsum_fake_quant_equals_integer_form() -> None:
    x_q = codes((300, 20))
    fake, integer = function_forms("cumsum", 0.1414214)
    y_fq = fake(on_grid(x_q, 0.0131417), dim=1)
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, 0.0131417), dim=1))


def test_cumsum_high_precision_output_is_the_scaled_accumulator() -> None:
    x_q = codes((3, 50))
    _, integer = function_forms("cumsum", None)
    expected = np.cumsum(x_q.numpy().astype(np.int64), 1).astype(S) * S(0.02)
    np.testing.assert_array_equal(integer(quantized(x_q, 0.02), 1).numpy(), expected)


def test_cumsum_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.cumsum, "cumsum", torch.randn(2, 3, 4), dim=1)


def test_cumsum_in_networks() -> None:
    check_in_networks(lambda m, x: x.cumsum(2), "cumsum_0")
