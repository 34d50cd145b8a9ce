from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.quant import FloatFunctional
from tests.quant.integer_reference import requantized
from tests.quant.op_forms import assert_codes_equal, codes, forms_of, on_grid, quantized
from tests.quant.ops.arithmetic_cases import (
    DTYPES,
    RANGES,
    SHAPES,
    S,
    check_dtypes_and_shapes,
    check_every_pair,
    check_gradients,
    check_in_networks,
    function_forms,
    rounded,
)


def product(x: Any, x_scale: Any, y: Any, y_scale: Any, out_scale: Any, dtype: str) -> np.ndarray:
    return requantized(x.astype(np.int64) * y.astype(np.int64), x_scale * y_scale / out_scale, RANGES[dtype])


def test_mul_every_pair_of_codes_equals_arithmetic() -> None:
    scales = ((0.0131417, 0.4142136, 0.6136), (0.02, 0.03, 0.011), (1.0, 0.5, 64.0))
    check_every_pair("mul", product, np.multiply, scales)


@settings(max_examples=30, deadline=None)
@given(
    dtypes=st.sampled_from(DTYPES),
    shapes=st.sampled_from(SHAPES),
    scales=st.tuples(*[st.floats(1e-8, 1e8)] * 3),
    seed=st.integers(0, 50),
)
def test_mul_any_dtypes_shapes_and_scales_equal_arithmetic(dtypes: Any, shapes: Any, scales: Any, seed: int) -> None:
    check_dtypes_and_shapes("mul", product, dtypes, shapes, scales, seed)


@pytest.mark.parametrize("number", [2, -0.3, 0, True, torch.tensor(-1.25)])
def test_mul_number_goes_into_the_multiplier(number: Any) -> None:
    x_q = codes((256,))
    fake, integer = function_forms("mul", 0.03)
    expected = rounded(x_q.numpy().astype(S) * (S(0.02) * S(float(number)) / S(0.03)))
    for args in ((quantized(x_q, 0.02), number), (number, quantized(x_q, 0.02))):
        assert_codes_equal(integer(*args), expected)
    assert int((fake(on_grid(x_q, 0.02), number).int_repr().long() - torch.tensor(expected)).abs().max()) <= 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_mul_integer_or_bool_tensor_stands_for_itself(dtype: torch.dtype) -> None:
    x_q = codes((4, 64))
    factor = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(0)).to(dtype)
    _, integer = function_forms("mul", 0.02)
    assert_codes_equal(integer(quantized(x_q, 0.02), factor), (x_q * factor).numpy())


def test_mul_functional_methods_equal_the_function() -> None:
    x, y = quantized(codes((256,)), 0.02), quantized(codes((256,), 1), 0.03)
    _, functional = forms_of(FloatFunctional(), 0.05)
    _, function = function_forms("mul", 0.05)
    assert torch.equal(functional.mul(x, y).plain, function(x, y).plain)
    assert torch.equal(functional.mul_scalar(x, -0.5).plain, function(x, -0.5).plain)


def test_mul_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.mul, "mul", torch.randn(3, 4), torch.randn(4))


def _in_place(module: Any, x: Any) -> Any:
    y = x + 1
    y *= x
    y.mul_(-0.5)
    return y


SPELLINGS = {
    "operator": lambda m, x: x * x.relu(),
    "reflected": lambda m, x: -0.75 * x,
    "parameter": lambda m, x: x * m.gain,
    "view_of_a_parameter": lambda m, x: x * m.gain.view(1, -1, 1, 1)[:, :4],
    "number_parameter": lambda m, x: x * m.temperature,
    "bool_buffer": lambda m, x: x * m.keep,
    "comparison": lambda m, x: x * (x > -100),
    "multiply": lambda m, x: torch.multiply(x, 3),
    "size": lambda m, x: x * x.size(1),
    "in_place": _in_place,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_mul_in_networks(spelling: str) -> None:
    check_in_networks(SPELLINGS[spelling], "mul_0")
