from __future__ import annotations

from typing import Any

import pytest
import torch

from profiler.quant import QTensor
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, check_in_networks


def ranked(x_q: Any, dim: int, descending: bool) -> Any:
    """Values and positions in order; equal values keep theirs."""
    return torch.sort(x_q.to(torch.int64), dim=dim, descending=descending, stable=True)


@pytest.mark.parametrize("make", [quantized, on_grid])
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize(("dim", "largest"), [(-1, True), (1, False), (0, True)])
def test_topk_gives_codes_of_one_scale_and_lowest_indices_of_ties(
    make: Any, dtype: str, dim: int, largest: bool
) -> None:
    x_q = (codes((4, 6, 5), 0, dtype) // 60).contiguous()
    result = torch.topk(make(x_q, 0.3, dtype), 3, dim, largest)
    values, indices = (t.narrow(dim, 0, 3) for t in ranked(x_q, dim, largest))
    assert isinstance(result.values, QTensor)
    assert (result.values.qdtype, float(result.values.scale)) == (dtype, float(torch.tensor(0.3)))
    assert torch.equal(result.values.int_repr().to(torch.int64), values)
    assert type(result.indices) is torch.Tensor
    assert torch.equal(result.indices, indices)


@pytest.mark.parametrize("make", [quantized, on_grid])
@pytest.mark.parametrize(
    "spelling", [lambda x: x.sort(1, True), lambda x: torch.sort(x, dim=1, descending=True), lambda x: x.sort(1)]
)
def test_topk_sort_is_stable(make: Any, spelling: Any) -> None:
    x_q = (codes((4, 30)) // 40).contiguous()
    result, expected = spelling(make(x_q, 0.3)), spelling(x_q)
    assert torch.equal(result[0].int_repr(), expected[0])
    assert torch.equal(result[1], ranked(x_q, 1, bool(expected[0][0, 0] > expected[0][0, -1]))[1])


def test_topk_more_than_there_are_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        torch.topk(quantized(codes((4,)), 0.1), 5)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x.topk(2, 1)[0] * 2,
        lambda m, x: torch.gather(x, 1, x.topk(2, dim=1).indices),
        lambda m, x: x.sort(1)[0],
        lambda m, x: x.flatten(1).topk(5).values,
    ],
)
def test_topk_in_networks(body: Any) -> None:
    check_in_networks(body)
