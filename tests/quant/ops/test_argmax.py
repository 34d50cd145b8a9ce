from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, check_in_networks


@pytest.mark.parametrize("make", [quantized, on_grid])
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_argmax_gives_the_first_of_equal_values(make: Any, dtype: str, dim: int) -> None:
    x_q = (codes((4, 30, 5), 2, dtype) // 60).contiguous()
    x = make(x_q, 0.1, dtype)
    for result, expected in (
        (x.argmax(dim), np.argmax(x_q.numpy(), dim)),
        (x.argmin(dim), np.argmin(x_q.numpy(), dim)),
    ):
        assert type(result) is torch.Tensor
        assert (result.numpy() == expected).all()
    order = np.argsort(x_q.numpy().astype(np.int64), dim, kind="stable")
    assert (torch.argsort(x, dim).numpy() == order).all()
    backwards = np.argsort(-x_q.numpy().astype(np.int64), dim, kind="stable")
    assert (x.argsort(dim=dim, descending=True).numpy() == backwards).all()


@pytest.mark.parametrize("make", [quantized, on_grid])
def test_argmax_positions_of_what_is_not_zero(make: Any) -> None:
    x_q = codes((4, 5)) // 100
    x = make(x_q, 0.1)
    assert int(x.argmax()) == int(x_q.argmax())
    assert torch.equal(x.nonzero(), x_q.nonzero())
    assert int(torch.count_nonzero(x)) == int(torch.count_nonzero(x_q))


@pytest.mark.parametrize("body", [lambda m, x: x.argmax(1) * 0 + 3, lambda m, x: x.relu()[0].argmin() * 0 + 1])
def test_argmax_in_networks_lies_outside_the_quantized_region(body: Any) -> None:
    check_in_networks(lambda m, x: body(m, x).float())
