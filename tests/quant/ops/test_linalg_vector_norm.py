from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from profiler.errors import UnsupportedOpError
from tests.quant.integer_reference import requantized
from tests.quant.op_forms import assert_codes_equal, codes, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_gradients, check_in_networks, function_forms
from tests.quant.ops.moment_cases import DIMS, check_steps

NORMS: dict[float, Any] = {
    2: lambda x, axis, keep: np.sqrt((x * x).sum(axis=axis, keepdims=keep)),
    1: lambda x, axis, keep: np.abs(x).sum(axis=axis, keepdims=keep),
    math.inf: lambda x, axis, keep: np.abs(x).max(axis=axis, keepdims=keep),
    -math.inf: lambda x, axis, keep: np.abs(x).min(axis=axis, keepdims=keep),
}


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("order", NORMS)
def test_linalg_vector_norm_equals_float64_on_the_codes(dims: dict[str, Any], dtype: str, order: float) -> None:
    if order == -math.inf and not dims:
        return  # the least magnitude of all is 0 here
    check_steps("linalg_vector_norm", NORMS[order], dims, dtype, ord=order)


def test_linalg_vector_norm_of_zeros_and_of_an_empty_batch() -> None:
    _, integer = function_forms("linalg_vector_norm", 0.05)
    assert_codes_equal(integer(quantized(torch.zeros(2, 9, dtype=torch.int8), 0.02), dim=1), np.zeros(2, np.int64))
    assert_codes_equal(integer(quantized(codes((0, 4)), 0.02), dim=1), np.zeros(0, np.int64))


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_linalg_vector_norm_extreme_scales_equal_arithmetic(scale: float) -> None:
    x_q = codes((4, 64))
    _, integer = function_forms("linalg_vector_norm", scale * 5)
    steps = np.sqrt((x_q.numpy().astype(np.float64) ** 2).sum(1)).astype(S)
    assert_codes_equal(integer(quantized(x_q, scale), dim=1), requantized(steps, S(scale) / S(scale * 5)))


def test_linalg_vector_norm_other_orders_are_refused_by_name() -> None:
    _, integer = function_forms("linalg_vector_norm", 0.05)
    with pytest.raises(UnsupportedOpError, match="p=3"):
        integer(quantized(codes((4, 4)), 0.02), 3, dim=1)


def test_linalg_vector_norm_gradient_is_that_of_the_float_function_and_finite_at_zero() -> None:
    check_gradients(
        torch.linalg.vector_norm,
        "linalg_vector_norm",
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)),
        dim=1,
    )


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
        lambda m, x: x / (torch.linalg.vector_norm(x, 2, (2, 3), keepdim=True) + 0.5),
    ],
)
def test_linalg_vector_norm_in_networks(body: Any) -> None:
    check_in_networks(body, "linalg_vector_norm_0")
