from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.quant.ops.arithmetic_cases import RANGES, check_gradients, check_in_networks
from tests.quant.ops.moment_cases import (
    DIMS,
    NORMS,
    check_norm_extreme_scale,
    check_norm_refuses_other_orders,
    check_norm_steps,
    check_norm_zeros,
)


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("order", NORMS)
def test_norm_equals_float64_on_the_codes(dims: dict[str, Any], dtype: str, order: float) -> None:
    check_norm_steps("norm", dims, dtype, order, p=order)


def test_norm_of_zeros_and_of_an_empty_batch() -> None:
    check_norm_zeros("norm")


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_norm_extreme_scales_equal_arithmetic(scale: float) -> None:
    check_norm_extreme_scale("norm", scale)


def test_norm_other_orders_are_refused_by_name() -> None:
    check_norm_refuses_other_orders("norm")


def test_norm_gradient_is_that_of_the_float_function_and_finite_at_zero() -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    check_gradients(torch.norm, "norm", x, dim=1)


@pytest.mark.parametrize(
    "body", [lambda m, x: x.norm(dim=1, keepdim=True), lambda m, x: x / (torch.norm(x, 2, (2, 3), keepdim=True) + 0.5)]
)
def test_norm_in_networks(body: Any) -> None:
    check_in_networks(body, "norm_0")
