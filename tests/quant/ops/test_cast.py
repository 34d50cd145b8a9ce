"""Casts of quantized values to integers and numbers read real values, never codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models import Stubbed, images, make
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.stages import FRONT_ENDS

CASTS: dict[str, tuple[Callable[[Any], Any], torch.dtype]] = {
    "long": (lambda x: x.long(), torch.int64),
    "int": (lambda x: x.int(), torch.int32),
    "short": (lambda x: x.short(), torch.int16),
    "to": (lambda x: x.to(torch.int64), torch.int64),
    "to_keyword": (lambda x: x.to(dtype=torch.int32), torch.int32),
    "to_other": (lambda x: x.to(torch.arange(2)), torch.int64),
    "type": (lambda x: x.type(torch.int64), torch.int64),
    "type_name": (lambda x: x.type("torch.LongTensor"), torch.int64),
    "type_as": (lambda x: x.type_as(torch.arange(2)), torch.int64),
    "bool": (lambda x: x.bool(), torch.bool),
}


@pytest.mark.parametrize("form", [quantized, on_grid])
@pytest.mark.parametrize("name", CASTS)
def test_cast_gives_real_values_without_fraction(name: str, form: Any) -> None:
    x_q = codes((256,))
    cast, dtype = CASTS[name]
    result = cast(form(x_q, 0.37))
    assert type(result) is Tensor
    assert result.dtype == dtype
    assert torch.equal(result, (x_q.float() * torch.tensor(0.37)).to(dtype))


@pytest.mark.parametrize("form", [quantized, on_grid])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_cast_to_a_float_dtype_keeps_the_scale(form: Any, dtype: torch.dtype) -> None:
    x = form(codes((5,)), 0.5)
    assert torch.equal(x.to(dtype).dequantize(), x.dequantize())
    assert torch.equal(x.to(dtype).q_scale(), x.q_scale())


class CastThenPick(Stubbed):
    """Rows of a table picked by a value that was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 3, 1), nn.Embedding(4, 8)

    def body(self, x: Any) -> Any:
        y = self.conv(x)
        rows = (y.mean() * 0).to(torch.int64) + (y.amax().long() > 0).long()
        return y + self.table(rows)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_cast_in_networks_of_both_front_ends(front_end: str) -> None:
    prepare, to_integers = FRONT_ENDS[front_end]
    model = make(CastThenPick)
    prepared = prepare(model, images())
    x = images()[0]
    converted = to_integers(prepared)
    with torch.no_grad():
        assert float((prepared(x) - model(x)).abs().max()) < 0.2
        assert float((converted(x) - prepared(x)).abs().max()) < 0.1
