from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.quant import FloatFunctional
from tests.quant.op_forms import assert_codes_equal, codes, forms_of, on_grid, quantized
from tests.quant.ops.arithmetic_cases import (
    DTYPES,
    SHAPES,
    S,
    check_dtypes_and_shapes,
    check_every_pair,
    check_gradients,
    check_in_networks,
    every_pair,
    function_forms,
    rounded,
)


def quotient(x: Any, x_scale: Any, y: Any, y_scale: Any, out_scale: Any, dtype: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        ratio = np.where(x + 0 * y == 0, S(0), x / y)
        return rounded(ratio * (x_scale / (y_scale * out_scale)), dtype)


def real_quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.where(x == 0, 0.0, x / y)


def test_div_every_pair_of_codes_equals_arithmetic_also_by_zero() -> None:
    scales = ((0.0131417, 0.4142136, 0.0136), (0.02, 0.03, 0.311), (1.0, 0.5, 0.25))
    check_every_pair("div", quotient, real_quotient, scales)


@settings(max_examples=30, deadline=None)
@given(
    dtypes=st.sampled_from(DTYPES),
    shapes=st.sampled_from(SHAPES),
    scales=st.tuples(*[st.floats(1e-8, 1e8)] * 3),
    seed=st.integers(0, 50),
)
def test_div_any_dtypes_shapes_and_scales_equal_arithmetic(dtypes: Any, shapes: Any, scales: Any, seed: int) -> None:
    check_dtypes_and_shapes("div", quotient, dtypes, shapes, scales, seed)


def test_div_by_zero_is_the_end_of_the_range_and_zero_by_zero_is_zero() -> None:
    x, zero = torch.tensor([5, -5, 0], dtype=torch.int8), torch.zeros(3, dtype=torch.int8)
    fake, integer = function_forms("div", 0.1)
    assert integer(quantized(x, 0.1), quantized(zero, 0.1)).plain.tolist() == [127, -128, 0]
    assert fake(on_grid(x, 0.1), on_grid(zero, 0.1)).int_repr().tolist() == [127, -128, 0]
    negative_zero = on_grid(zero, 0.1).like(torch.full((3,), -0.0))
    assert fake(on_grid(x, 0.1), negative_zero).int_repr().tolist() == [127, -128, 0]
    assert integer(quantized(x, 0.1), 0).plain.tolist() == [127, -128, 0]


def test_div_zero_divisor_does_not_stretch_the_observed_range() -> None:
    fake, _ = function_forms("div", 0.1)
    fake.train()
    x, y = on_grid(codes((4,)), 0.1), on_grid(torch.tensor([0, 1, 2, 0], dtype=torch.int8), 1.0)
    assert torch.isfinite(fake(x, y).plain).all()
    assert torch.isfinite(fake.activation_post_process.scale).all()


@pytest.mark.parametrize("number", [2, -0.3, torch.tensor(1.25)])
def test_div_number_on_either_side_equals_formula(number: Any) -> None:
    x_q = codes((256,))
    _, integer = function_forms("div", 0.3)
    steps, n = x_q.numpy().astype(S), S(float(number))
    assert_codes_equal(integer(quantized(x_q, 0.2), number), rounded(steps / n * (S(0.2) / S(0.3))))
    with np.errstate(divide="ignore"):
        expected = rounded(n / steps * (S(1) / (S(0.2) * S(0.3))))
    assert_codes_equal(integer(number, quantized(x_q, 0.2)), expected)


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_div_rounding_mode_rounds_the_real_quotient(mode: str) -> None:
    x_q, y_q = every_pair()
    fake, integer = function_forms("div", 0.25)
    x, y = (x_q.float() * S(0.3)).numpy(), (y_q.float() * S(0.4)).numpy()
    with np.errstate(all="ignore"):
        whole = torch.div(torch.tensor(x), torch.tensor(y), rounding_mode=mode).numpy()
        expected = rounded(np.where(x == 0, S(0), whole) * (S(1) / S(0.25)))
    result = integer(quantized(x_q, 0.3), quantized(y_q, 0.4), rounding_mode=mode)
    assert_codes_equal(result, expected)
    y_fq = fake(on_grid(x_q, 0.3), on_grid(y_q, 0.4), rounding_mode=mode)
    assert torch.equal(y_fq.int_repr(), result.plain)


def test_div_functional_equals_the_function() -> None:
    x, y = quantized(codes((256,)), 0.02), quantized(codes((256,), 1), 0.03)
    _, functional = forms_of(FloatFunctional(), 0.05)
    _, function = function_forms("div", 0.05)
    assert torch.equal(functional.div(x, y).plain, function(x, y).plain)


def test_div_gradient_is_that_of_the_float_function_and_finite_at_zero() -> None:
    check_gradients(torch.div, "div", torch.randn(3, 4), torch.rand(4) + 0.5)
    fake, _ = function_forms("div", 0.1)
    x, y = torch.ones(3, requires_grad=True), torch.tensor([0.0, 1.0, -0.0], requires_grad=True)
    wrap = on_grid(codes((3,)), 0.1).like
    fake(wrap(x), wrap(y)).plain.sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(y.grad).all()


SPELLINGS = {
    "operator": lambda m, x: x / (x.abs() + 1),
    "reflected": lambda m, x: 1 / (x.abs() + 1),
    "number": lambda m, x: x / 3,
    "parameter": lambda m, x: x / m.gain,
    "number_parameter": lambda m, x: x / m.temperature,
    "true_divide": lambda m, x: torch.true_divide(x, 0.5),
    "in_place": lambda m, x: (x + 1).div_(2),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_div_in_networks(spelling: str) -> None:
    check_in_networks(SPELLINGS[spelling], "div_0")
