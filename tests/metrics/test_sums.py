"""Sums of products: float32's speed must not cost digits at either end of its range."""

from __future__ import annotations

import pytest
import torch

from profiler.metrics.sums import sum_of_products, sum_of_squares, wide_enough


@pytest.mark.parametrize("magnitude", [1e-30, 1e-21, 1.0, 1e19, 1e30])
def test_sum_of_squares_matches_float64(magnitude: float) -> None:
    x = torch.linspace(-3, 3, 1001) * magnitude

    assert sum_of_squares(x) == pytest.approx(float((x.double() ** 2).sum()), rel=1e-6)


def test_sum_of_squares_of_zeros_and_of_nothing_is_0() -> None:
    assert sum_of_squares(torch.zeros(5)) == sum_of_squares(torch.zeros(0)) == 0.0


def test_sum_of_products_that_cancel_is_exactly_0() -> None:
    assert sum_of_products(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 2.0])) == 0.0


def test_wide_enough_keeps_float64_and_widens_the_rest() -> None:
    dtypes = [wide_enough(torch.ones(1, dtype=d)).dtype for d in (torch.float64, torch.float16, torch.int8)]

    assert dtypes == [torch.float64, torch.float32, torch.float32]
