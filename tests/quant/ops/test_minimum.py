from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.quant import FloatFunctional
from tests.quant.op_forms import codes, forms_of, quantized
from tests.quant.ops.arithmetic_cases import (
    DTYPES,
    RANGES,
    SHAPES,
    check_dtypes_and_shapes,
    check_every_pair,
    check_gradients,
    check_in_networks,
    function_forms,
)
from tests.quant.ops.extremes_cases import check_reduction, truth_of

TRUTH = truth_of(np.minimum)


@pytest.mark.parametrize("name", ["minimum", "min", "fmin"])
def test_minimum_every_pair_of_codes_equals_arithmetic(name: str) -> None:
    check_every_pair(name, TRUTH, np.minimum, ((0.0131417, 0.4142136, 0.2136), (0.7182818, 0.1414214, 0.3141593)))


@settings(max_examples=30, deadline=None)
@given(
    dtypes=st.sampled_from(DTYPES),
    shapes=st.sampled_from(SHAPES),
    scales=st.tuples(*[st.floats(1e-8, 1e8)] * 3),
    seed=st.integers(0, 50),
)
def test_minimum_any_dtypes_shapes_and_scales_equal_arithmetic(
    dtypes: Any, shapes: Any, scales: Any, seed: int
) -> None:
    check_dtypes_and_shapes("minimum", TRUTH, dtypes, shapes, scales, seed)


REDUCTIONS = {
    "all": lambda x: x.min(),
    "dim": lambda x: x.min(1),
    "keepdim": lambda x: torch.min(x, dim=-1, keepdim=True),
    "input": lambda x: torch.min(input=x, dim=0),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", RANGES)
def test_minimum_of_one_tensor_keeps_the_scale(name: str, dtype: str) -> None:
    check_reduction(REDUCTIONS[name], dtype)


def test_minimum_functional_equals_the_function() -> None:
    x, y = quantized(codes((256,)), 0.02), quantized(codes((256,), 1), 0.03)
    _, functional = forms_of(FloatFunctional(), 0.05)
    _, function = function_forms("minimum", 0.05)
    assert torch.equal(functional.minimum(x, y).plain, function(x, y).plain)


def test_minimum_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.minimum, "minimum", torch.randn(3, 4), torch.randn(4))


@pytest.mark.parametrize(
    ("spelling", "function"),
    [
        (lambda m, x: torch.minimum(x, x * 0.5 + 1), "minimum_0"),
        (lambda m, x: torch.min(x, x * 0.5 + 1), "min_0"),
        (lambda m, x: x.minimum(m.shift), "minimum_0"),
    ],
)
def test_minimum_in_networks(spelling: Any, function: str) -> None:
    check_in_networks(spelling, function)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x - x.min(),
        lambda m, x: x - x.min(1, keepdim=True)[0],
        lambda m, x: x.min(dim=2).values * 2,
        lambda m, x: torch.gather(x, 1, x.min(1, keepdim=True).indices),
    ],
)
def test_minimum_of_one_tensor_in_networks_needs_no_scale(body: Any) -> None:
    check_in_networks(body)
