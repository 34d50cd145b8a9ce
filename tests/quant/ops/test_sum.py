from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from profiler.quant import FloatFunctional
from tests.quant.integer_reference import requantized
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_gradients, check_in_networks, function_forms

DIMS: list[dict[str, Any]] = [
    {"dim": 1}, {"dim": -1}, {"dim": (2, 3)}, {"dim": [2, 3], "keepdim": True}, {"dim": (0, -1)}, {},
    {"axis": 1, "keepdims": True},
]  # fmt: skip


def sums(x_q: Any, dims: dict[str, Any]) -> np.ndarray:
    axis = dims.get("dim", dims.get("axis"))
    keep = dims.get("keepdim", dims.get("keepdims", False))
    return np.asarray(x_q.numpy().astype(np.int64).sum(tuple(axis) if isinstance(axis, list) else axis, keepdims=keep))


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("x_dtype", RANGES)
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("shape", [(3, 5, 6, 7), (0, 5, 6, 7), (3, 0, 6, 7)])
def test_sum_equals_arithmetic(dims: dict[str, Any], x_dtype: str, dtype: str, shape: Any) -> None:
    x_q = codes(shape, 0, x_dtype)
    _, integer = function_forms("sum", 1.7, dtype)
    expected = requantized(sums(x_q, dims), S(0.05) / S(1.7), RANGES[dtype])
    assert_codes_equal(integer(quantized(x_q, 0.05, x_dtype), **dims), expected, dtype)


def test_sum_fake_quant_equals_integer_form() -> None:
    x_q = codes((3000, 20))
    fake, integer = function_forms("sum", 0.7071068)
    y_fq = fake(on_grid(x_q, 0.0131417), 1)
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, 0.0131417), 1))


def test_sum_high_precision_output_is_the_scaled_accumulator() -> None:
    x_q = codes((3, 5000))
    _, integer = function_forms("sum", None)
    expected = x_q.numpy().astype(np.int64).sum(1).astype(S) * S(0.02)
    np.testing.assert_array_equal(integer(quantized(x_q, 0.02), 1).numpy(), expected)


def test_sum_functional_equals_the_function() -> None:
    x = quantized(codes((4, 16)), 0.02)
    _, functional = forms_of(FloatFunctional(), 0.5)
    _, function = function_forms("sum", 0.5)
    assert torch.equal(functional.sum(x, dim=1, keepdim=True).plain, function(x, 1, True).plain)


def test_sum_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.sum, "sum", torch.randn(2, 3, 4), dim=1)


@pytest.mark.parametrize("body", [lambda m, x: x.sum((2, 3)), lambda m, x: x - torch.sum(x, dim=1, keepdim=True)])
def test_sum_in_networks(body: Any) -> None:
    check_in_networks(body, "sum_0")
