from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.quant import FloatFunctional
from tests.quant.integer_reference import requantized
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.arithmetic_cases import DTYPES, RANGES, S, check_gradients, check_in_networks, function_forms

MATRICES = [((3, 5), (5, 4)), ((2, 3, 5), (2, 5, 4)), ((2, 1, 3, 5), (4, 5, 2)), ((5,), (5,)), ((2, 3, 5), (5,)),
            ((0, 5), (5, 2)), ((3, 0), (0, 4)), ((1, 1), (1, 1))]  # fmt: skip


def product(x_q: Any, x_scale: float, y_q: Any, y_scale: float, out_scale: float, dtype: str) -> np.ndarray:
    acc = np.matmul(x_q.numpy().astype(np.int64), y_q.numpy().astype(np.int64))
    return requantized(np.asarray(acc), S(x_scale) * S(y_scale) / S(out_scale), RANGES[dtype])


@settings(max_examples=40, deadline=None)
@given(
    dtypes=st.sampled_from(DTYPES),
    shapes=st.sampled_from(MATRICES),
    scales=st.tuples(*[st.floats(1e-8, 1e8)] * 3),
    seed=st.integers(0, 50),
)
def test_matmul_any_dtypes_shapes_and_scales_equal_arithmetic(dtypes: Any, shapes: Any, scales: Any, seed: int) -> None:
    x_q, y_q = codes(shapes[0], seed, dtypes[0]), codes(shapes[1], seed + 1, dtypes[1])
    _, integer = function_forms("matmul", scales[2], dtypes[2])
    result = integer(quantized(x_q, scales[0], dtypes[0]), quantized(y_q, scales[1], dtypes[1]))
    assert_codes_equal(result, product(x_q, scales[0], y_q, scales[1], scales[2], dtypes[2]), dtypes[2])


@pytest.mark.parametrize("x_dtype", RANGES)
@pytest.mark.parametrize("fan_in", [1023, 1025, 5000])
def test_matmul_largest_sums_are_exact(x_dtype: str, fan_in: int) -> None:
    lowest = RANGES[x_dtype][0]
    x_q = torch.full((2, fan_in), lowest, dtype=codes((1,), 0, x_dtype).dtype)
    x_q[1, 0] = lowest + 1
    _, integer = function_forms("matmul", 1.0, "qint16")
    scale = 20000 / (fan_in * lowest * lowest)
    result = integer(quantized(x_q, scale, x_dtype), quantized(x_q.T.contiguous(), 1.0, x_dtype))
    assert_codes_equal(result, product(x_q, scale, x_q.T, 1.0, 1.0, "qint16"), "qint16")


def test_matmul_strided_operands_equal_contiguous_ones() -> None:
    x_q = codes((4, 6, 8)).transpose(1, 2)[:, ::2]
    y_q = codes((4, 6, 8), 1)[..., 1::3]
    _, integer = function_forms("matmul", 0.5)
    result = integer(quantized(x_q, 0.02), quantized(y_q, 0.03))
    assert_codes_equal(result, product(x_q, 0.02, y_q, 0.03, 0.5, "qint8"))


@pytest.mark.parametrize("name", ["matmul", "bmm"])
def test_matmul_fake_quant_equals_formula_and_integer_form(name: str) -> None:
    x_q, y_q = codes((8, 40, 64)), codes((8, 64, 50), 1)
    fake, integer = function_forms(name, 0.7071068)
    y_fq = fake(on_grid(x_q, 0.0131417), on_grid(y_q, 0.0314159))
    result = integer(quantized(x_q, 0.0131417), quantized(y_q, 0.0314159))
    assert_codes_equal(result, product(x_q, 0.0131417, y_q, 0.0314159, 0.7071068, "qint8"))
    assert_nearly_same_codes(y_fq, result)


def test_matmul_high_precision_output_is_the_scaled_accumulator() -> None:
    x_q, y_q = codes((3, 2000)), codes((2000, 4), 1)
    fake, integer = function_forms("matmul", None)
    acc = x_q.numpy().astype(np.int64) @ y_q.numpy().astype(np.int64)
    result = integer(quantized(x_q, 0.02), quantized(y_q, 0.03))
    np.testing.assert_array_equal(result.numpy(), acc.astype(S) * (S(0.02) * S(0.03)))
    assert torch.allclose(fake(on_grid(x_q, 0.02), on_grid(y_q, 0.03)), result, rtol=1e-4, atol=1e-3)


def test_matmul_functional_equals_the_function() -> None:
    x, y = quantized(codes((4, 16)), 0.02), quantized(codes((16, 4), 1), 0.03)
    _, functional = forms_of(FloatFunctional(), 0.5)
    _, function = function_forms("matmul", 0.5)
    assert torch.equal(functional.matmul(x, y).plain, function(x, y).plain)


def test_matmul_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.matmul, "matmul", torch.randn(2, 3, 4), torch.randn(4, 5))


SPELLINGS = {
    "matmul_0": lambda m, x: x @ x.transpose(2, 3),
    "bmm_0": lambda m, x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2)),
    "mm_0": lambda m, x: torch.mm(x.flatten(1), x.flatten(1).t()),
    "matmul_0 ": lambda m, x: x.permute(0, 2, 3, 1) @ m.gain.view(4, 1),
}


@pytest.mark.parametrize("function", SPELLINGS)
def test_matmul_in_networks(function: str) -> None:
    check_in_networks(SPELLINGS[function], function.strip())
