from __future__ import annotations

import operator
from typing import Any

import pytest
import torch

from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import check_in_networks, every_pair, real

OPERATORS = ["gt", "ge", "lt", "le", "eq", "ne"]


@pytest.mark.parametrize("make", [quantized, on_grid])
@pytest.mark.parametrize("name", OPERATORS)
def test_compare_every_pair_of_codes_compares_real_values(make: Any, name: str) -> None:
    x_q, y_q = every_pair()
    expected = getattr(operator, name)(real(x_q, 0.0131417), real(y_q, 0.4142136))
    for function in (getattr(operator, name), getattr(torch, name), getattr(torch.Tensor, name)):
        result = function(make(x_q, 0.0131417), make(y_q, 0.4142136))
        assert type(result) is torch.Tensor
        assert result.dtype == torch.bool
        assert (result.numpy() == expected).all()


@pytest.mark.parametrize("make", [quantized, on_grid])
def test_compare_equal_real_values_at_two_scales_are_equal(make: Any) -> None:
    x_q, y_q = torch.tensor([2, 4, -6], dtype=torch.int8), torch.tensor([1, 2, -3], dtype=torch.int8)
    assert bool((make(x_q, 0.25) == make(y_q, 0.5)).all())


@pytest.mark.parametrize("make", [quantized, on_grid])
@pytest.mark.parametrize("name", OPERATORS)
def test_compare_with_numbers_and_float_tensors(make: Any, name: str) -> None:
    x_q, compare = codes((4, 5)), getattr(operator, name)
    x, values, other = make(x_q, 0.1), x_q * torch.tensor(0.1), torch.randn(5)
    assert torch.equal(compare(x, 0.5), compare(values, 0.5))
    assert torch.equal(compare(x, other), compare(values, other))
    assert torch.equal(compare(other, x), compare(other, values))


@pytest.mark.parametrize("make", [quantized, on_grid])
def test_compare_logic_and_classes_are_plain_booleans(make: Any) -> None:
    x_q = codes((4, 5)) // 100
    x, is_set = make(x_q, 0.1), x_q != 0
    assert torch.equal(torch.logical_not(x), ~is_set)
    assert torch.equal(torch.logical_and(x, x > 0), x_q > 0)
    assert torch.equal(torch.logical_or(x, x), is_set)
    assert not torch.isnan(x).any()
    assert torch.isfinite(x).all()
    assert torch.equal(x.any(1), is_set.any(1))
    assert torch.equal(torch.all(x, dim=0), is_set.all(0))


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: (x > -100) & (x < 100),
        lambda m, x: x * (x.abs() < 50),
        lambda m, x: torch.where(torch.logical_and(x < 50, m.keep), x, x.relu()),
    ],
)
def test_compare_in_networks(body: Any) -> None:
    check_in_networks(body)
