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

TRUTH = truth_of(np.maximum)


@pytest.mark.parametrize("name", ["maximum", "max", "fmax"])
def test_maximum_every_pair_of_codes_equals_arithmetic(name: str) -> None:
    check_every_pair(name, TRUTH, np.maximum, ((0.0131417, 0.4142136, 0.2136), (0.7182818, 0.1414214, 0.3141593)))


@settings(max_examples=30, deadline=None)
@given(
    dtypes=st.sampled_from(DTYPES),
    shapes=st.sampled_from(SHAPES),
    scales=st.tuples(*[st.floats(1e-8, 1e8)] * 3),
    seed=st.integers(0, 50),
)
def test_maximum_any_dtypes_shapes_and_scales_equal_arithmetic(
    dtypes: Any, shapes: Any, scales: Any, seed: int
) -> None:
    check_dtypes_and_shapes("maximum", TRUTH, dtypes, shapes, scales, seed)


REDUCTIONS = {
    "all": lambda x: x.max(),
    "dim": lambda x: x.max(1),
    "keepdim": lambda x: torch.max(x, dim=-1, keepdim=True),
    "input": lambda x: torch.max(input=x, dim=0),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", RANGES)
def test_maximum_of_one_tensor_keeps_the_scale(name: str, dtype: str) -> None:
    check_reduction(REDUCTIONS[name], dtype)


def test_maximum_functional_equals_the_function() -> None:
    x, y = quantized(codes((256,)), 0.02), quantized(codes((256,), 1), 0.03)
    _, functional = forms_of(FloatFunctional(), 0.05)
    _, function = function_forms("maximum", 0.05)
    assert torch.equal(functional.maximum(x, y).plain, function(x, y).plain)


def test_maximum_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.maximum, "maximum", torch.randn(3, 4), torch.randn(4))


@pytest.mark.parametrize(
    ("spelling", "function"),
    [
        (lambda m, x: torch.maximum(x, x * 0.5 + 1), "maximum_0"),
        (lambda m, x: torch.max(x, x * 0.5 + 1), "max_0"),
        (lambda m, x: x.maximum(m.shift), "maximum_0"),
    ],
)
def test_maximum_in_networks(spelling: Any, function: str) -> None:
    check_in_networks(spelling, function)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x - x.max(),
        lambda m, x: x - x.max(1, keepdim=True)[0],
        lambda m, x: x.max(dim=2).values * 2,
        lambda m, x: torch.gather(x, 1, x.max(1, keepdim=True).indices),
    ],
)
def test_maximum_of_one_tensor_in_networks_needs_no_scale(body: Any) -> None:
    check_in_networks(body)
