from __future__ import annotations

from typing import Any

import pytest
import torch

from profiler.quant import QTensor
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, check_in_networks
from tests.quant.ops.extremes_cases import check_reduction


@pytest.mark.parametrize(
    "reduce",
    [
        lambda x: x.amax(1),
        lambda x: x.amin((0, 2), keepdim=True),
        lambda x: torch.amax(x, dim=-1),
        lambda x: x.cummax(1),
        lambda x: x.cummin(0),
    ],
)
@pytest.mark.parametrize("dtype", RANGES)
def test_extremes_keep_the_scale_and_give_plain_indices(reduce: Any, dtype: str) -> None:
    check_reduction(reduce, dtype)


@pytest.mark.parametrize("make", [quantized, on_grid])
def test_extremes_aminmax_keeps_the_scale_of_both(make: Any) -> None:
    x_q = codes((4, 5))
    low, high = torch.aminmax(make(x_q, 0.3), dim=1)
    assert isinstance(low, QTensor)
    assert isinstance(high, QTensor)
    assert torch.equal(low.int_repr(), x_q.amin(1))
    assert torch.equal(high.int_repr(), x_q.amax(1))


@pytest.mark.parametrize("make", [quantized, on_grid])
@pytest.mark.parametrize("keepdim", [False, True])
def test_extremes_kthvalue_and_median_are_the_ranked_values(make: Any, keepdim: bool) -> None:
    x_q = codes((4, 6, 3))
    x = make(x_q, 0.3)
    for result, expected in (
        (x.kthvalue(2, 1, keepdim), x_q.kthvalue(2, 1, keepdim)),
        (torch.median(x, 1, keepdim=keepdim), torch.median(x_q, 1, keepdim=keepdim)),
    ):
        assert torch.equal(result[0].int_repr(), expected[0])
        gathered = x_q.gather(1, result[1] if keepdim else result[1].unsqueeze(1))
        assert torch.equal(gathered if keepdim else gathered.squeeze(1), expected[0])
    assert int(x.median().int_repr()) == int(x_q.median())


def test_extremes_amax_in_networks() -> None:
    check_in_networks(lambda m, x: x - x.amax(1, keepdim=True) + x.amin((2, 3), keepdim=True))


def test_extremes_median_in_networks() -> None:
    check_in_networks(lambda m, x: x.median(1)[0] + x.kthvalue(2, dim=1).values)
