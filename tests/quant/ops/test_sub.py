from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.quant import FloatFunctional
from profiler.quant.masks import is_mask_scale
from tests.quant.op_forms import assert_codes_equal, codes, forms_of, quantized
from tests.quant.ops.arithmetic_cases import (
    DTYPES,
    SHAPES,
    S,
    check_dtypes_and_shapes,
    check_every_pair,
    check_gradients,
    check_in_networks,
    function_forms,
    rounded,
)


def difference(x: Any, x_scale: Any, y: Any, y_scale: Any, out_scale: Any, dtype: str) -> np.ndarray:
    return rounded(x * (x_scale / out_scale) - y * (y_scale / out_scale), dtype)


def test_sub_every_pair_of_codes_equals_arithmetic() -> None:
    scales = ((0.0131417, 0.4142136, 0.2136), (0.7182818, 0.1414214, 0.3141593))
    check_every_pair("sub", difference, np.subtract, scales)


def is_no_mask(scale: float) -> bool:
    return not is_mask_scale(torch.tensor(scale))


@settings(max_examples=30, deadline=None)
@given(
    dtypes=st.sampled_from(DTYPES),
    shapes=st.sampled_from(SHAPES),
    scales=st.tuples(*[st.floats(1e-8, 1e8).filter(is_no_mask)] * 3),
    seed=st.integers(0, 50),
)
def test_sub_any_dtypes_shapes_and_scales_equal_arithmetic(dtypes: Any, shapes: Any, scales: Any, seed: int) -> None:
    check_dtypes_and_shapes("sub", difference, dtypes, shapes, scales, seed)


@pytest.mark.parametrize("number", [2, -0.3, 0, True])
def test_sub_number_on_either_side_equals_formula(number: float) -> None:
    x_q = codes((256,))
    _, integer = function_forms("sub", 0.03)
    steps, n = x_q.numpy().astype(S) * (S(0.02) / S(0.03)), S(number) / S(0.03)
    assert_codes_equal(integer(quantized(x_q, 0.02), number), rounded(steps - n))
    assert_codes_equal(integer(number, quantized(x_q, 0.02)), rounded(n - steps))


def test_sub_alpha_scales_the_second_operand() -> None:
    x_q, y_q = codes((256,)), codes((256,), 1)
    _, integer = function_forms("sub", 0.05)
    expected = rounded(x_q.numpy().astype(S) * (S(0.02) / S(0.05)) - y_q.numpy().astype(S) * (S(0.06) / S(0.05)))
    assert_codes_equal(integer(quantized(x_q, 0.02), quantized(y_q, 0.03), alpha=2), expected)


def test_sub_functional_equals_the_function() -> None:
    x_q, y_q = codes((256,)), codes((256,), 1)
    _, integer = forms_of(FloatFunctional(), 0.05)
    _, function = function_forms("sub", 0.05)
    given = (quantized(x_q, 0.02), quantized(y_q, 0.03))
    assert torch.equal(integer.sub(*given).plain, function(*given).plain)


def test_sub_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.sub, "sub", torch.randn(3, 4), torch.randn(4), alpha=2.0)


def _in_place(module: Any, x: Any) -> Any:
    y = x * 2
    y -= x
    y.sub_(1.5)
    return y


SPELLINGS = {
    "operator": lambda m, x: x - x.relu(),
    "reflected": lambda m, x: 1.5 - x,
    "dunder": lambda m, x: x.__rsub__(5),
    "torch_rsub": lambda m, x: torch.rsub(x, 2, alpha=2),
    "rsub_of_tensors": lambda m, x: torch.rsub(x, x.relu()),
    "torch_sub": lambda m, x: torch.sub(x, x.relu(), alpha=0.5),
    "subtract": lambda m, x: torch.subtract(x, 1),
    "buffer": lambda m, x: m.shift - x,
    "in_place": _in_place,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_sub_in_networks(spelling: str) -> None:
    check_in_networks(SPELLINGS[spelling], "sub_0")
