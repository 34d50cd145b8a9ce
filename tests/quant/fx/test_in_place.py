"""In-place code in a traced graph: it computes what the model does, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.errors import PrepareError
from profiler.quant import prepare_qat_fx


class Written(nn.Module):
    """A function between two convs."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), function

    def forward(self, x: Any) -> Any:
        return self.last(self.function(self.first(x)))


def alias_and_iadd(x: Any) -> Any:
    y = x
    y += 1
    return x


def other_operators(x: Any) -> Any:
    y = x
    y *= 0.5
    y -= 2
    y /= 3
    return x + y


def chunks_apart(x: Any) -> Any:
    a, b = x.chunk(2, 1)
    F.relu_(a)
    return torch.cat([a, b], 1)


def size_and_iadd(x: Any) -> Any:
    count = x.size(1)
    count -= 2
    return x.repeat(1, 2, 1, 1)[:, count : count + 4]


def view_of_written(x: Any) -> Any:
    v = x[:, :2]
    x.mul_(0.5)
    return torch.cat([v, x[:, 2:]], 1)


def written_view(x: Any) -> Any:
    v = x.view(x.shape[0], -1)
    v += 1
    return x


def written_data(x: Any) -> Any:
    x.data.mul_(0.5)
    return x


def view_of_in_place_relu(x: Any) -> Any:
    v = x.transpose(2, 3)
    F.relu(x, inplace=True)
    return v


def out_argument(x: Any) -> Any:
    torch.add(x, 1, out=x)
    return x


@pytest.mark.parametrize("function", [alias_and_iadd, other_operators, chunks_apart, size_and_iadd])
def test_trace_in_place_code_without_qconfig_equals_the_model(function: Any) -> None:
    model = Written(function).eval()
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(prepare_qat_fx(model, {"": None})(x), model(x))


@pytest.mark.parametrize("function", [view_of_written, written_view, written_data, view_of_in_place_relu, out_argument])
def test_trace_write_that_another_name_misses_is_refused(function: Any) -> None:
    with pytest.raises(PrepareError, match=r"read again later|writes into out="):
        prepare_qat_fx(Written(function).eval(), {"": None})


class InPlaceModule(Written):
    """An in-place activation module whose input has a view."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        v = y.transpose(2, 3)
        self.relu(y)
        return self.last(v)


def test_trace_in_place_module_that_a_view_misses_is_refused() -> None:
    with pytest.raises(PrepareError, match="overwrites a value whose view is read again later"):
        prepare_qat_fx(InPlaceModule().eval(), {"": None})
