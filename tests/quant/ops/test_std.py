from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.quant.ops.arithmetic_cases import RANGES, check_gradients, check_in_networks
from tests.quant.ops.moment_cases import (
    DIMS,
    check_variance_extreme_scale,
    check_variance_spellings,
    check_variance_steps,
    check_variance_zeros,
)


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("unbiased", [True, False])
def test_std_equals_float64_on_the_codes(dims: dict[str, Any], dtype: str, unbiased: bool) -> None:
    check_variance_steps("std", np.std, dims, dtype, unbiased)


def test_std_positional_spellings_are_torchs() -> None:
    check_variance_spellings("std")


def test_std_of_equal_codes_of_one_element_and_of_none_is_zero() -> None:
    check_variance_zeros("std")


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_std_extreme_scales_stay_finite_codes(scale: float) -> None:
    check_variance_extreme_scale("std", np.std, scale)


def test_std_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.std, "std", torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.mark.parametrize(
    "body", [lambda m, x: x.std((2, 3), keepdim=True), lambda m, x: x / (torch.std(x, dim=1, keepdim=True) + 0.5)]
)
def test_std_in_networks(body: Any) -> None:
    check_in_networks(body, "std_0")
