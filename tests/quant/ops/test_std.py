from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.quant.integer_reference import requantized
from tests.quant.op_forms import assert_codes_equal, codes, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_gradients, check_in_networks, function_forms
from tests.quant.ops.moment_cases import DIMS, check_steps


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("unbiased", [True, False])
def test_std_equals_float64_on_the_codes(dims: dict[str, Any], dtype: str, unbiased: bool) -> None:
    def steps(x: np.ndarray, axis: Any, keep: bool) -> np.ndarray:
        return np.asarray(np.std(x, axis=axis, ddof=int(unbiased), keepdims=keep))

    correction = {"correction": int(unbiased)} if dims else {"unbiased": unbiased}
    check_steps("std", steps, dims, dtype, power=1, **correction)


def test_std_positional_spellings_are_torchs() -> None:
    x = quantized(codes((3, 8)), 0.02)
    _, integer = function_forms("std", 0.05)
    everything = integer(x, False)
    assert torch.equal(everything.plain, integer(x, dim=None, correction=0).plain)
    assert torch.equal(integer(x, 1, False, True).plain, integer(x, dim=1, unbiased=False, keepdim=True).plain)
    assert torch.equal(integer(x, 1).plain, integer(x, dim=(1,), correction=1).plain)


def test_std_of_equal_codes_of_one_element_and_of_none_is_zero() -> None:
    _, integer = function_forms("std", 0.05)
    same = quantized(torch.full((2, 300), -128, dtype=torch.int8), 0.02)
    assert_codes_equal(integer(same, dim=1), np.zeros(2, np.int64))
    one = quantized(codes((2, 1)), 0.02)
    assert_codes_equal(integer(one, dim=1), np.zeros(2, np.int64))
    assert_codes_equal(integer(quantized(codes((0, 4)), 0.02), dim=1), np.zeros(0, np.int64))


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_std_extreme_scales_stay_finite_codes(scale: float) -> None:
    x_q = codes((4, 64))
    unit = np.float32(scale) ** 1
    out_scale = float(unit * 30)
    _, integer = function_forms("std", out_scale)
    steps = np.std(x_q.numpy().astype(np.float64), axis=1, ddof=1).astype(S)
    multiplier = (S(scale) * S(scale) if 1 == 2 else S(scale)) / S(out_scale)
    assert_codes_equal(integer(quantized(x_q, scale), dim=1), requantized(steps, multiplier))


def test_std_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.std, "std", torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.mark.parametrize(
    "body", [lambda m, x: x.std((2, 3), keepdim=True), lambda m, x: x / (torch.std(x, dim=1, keepdim=True) + 0.5)]
)
def test_std_in_networks(body: Any) -> None:
    check_in_networks(body, "std_0")
