from __future__ import annotations

from typing import Any

import pytest
import torch

from profiler.quant import QTensor
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, SHAPE, check_in_networks

INDEX = torch.tensor([[1, 0, 2]])
SELECTIONS: dict[str, Any] = {
    "gather": lambda x: torch.gather(x, 1, INDEX.view(1, 3, 1, 1).expand(2, 3, 6, 6)),
    "index_select": lambda x: x.index_select(1, INDEX[0]),
    "take_along_dim": lambda x: torch.take_along_dim(x, INDEX.view(1, 3, 1, 1), dim=1),
    "take": lambda x: torch.take(x, INDEX),
    "masked_select": lambda x: x.masked_select(torch.arange(6) > 2),
    "index": lambda x: x[:, INDEX[0]],
}


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("make", [quantized, on_grid])
def test_gather_moves_codes_and_keeps_the_scale(name: str, dtype: str, make: Any) -> None:
    x_q = codes(SHAPE, dtype=dtype)
    y = SELECTIONS[name](make(x_q, 0.3, dtype))
    assert isinstance(y, QTensor)
    assert (y.qdtype, float(y.scale)) == (dtype, float(torch.tensor(0.3)))
    assert torch.equal(y.int_repr(), SELECTIONS[name](x_q))


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x.index_select(1, m.positions) + x[:, :3],
        lambda m, x: torch.gather(x, 1, x.argmax(1, keepdim=True)),
        lambda m, x: torch.take_along_dim(x, x.argsort(1), 1),
        lambda m, x: x[:, m.positions],
    ],
)
def test_gather_in_networks(body: Any) -> None:
    check_in_networks(body)
