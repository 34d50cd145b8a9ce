"""What counts as a batch, and how many are taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, DataError
from profiler.quant.calibration.batches import take_batches

X, Y = torch.ones(2, 3), torch.zeros(2, 3)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return x if y is None else x + y


@pytest.mark.parametrize(
    ("data", "args", "kwargs"),
    [
        (X, [(X,)], [{}]),
        ((X, Y), [(X, Y)], [{}]),
        ({"x": X, "y": Y}, [()], [{"x": X, "y": Y}]),
        ([X, Y], [(X,), (Y,)], [{}, {}]),
        ([(X, Y)], [(X, Y)], [{}]),
        ([[X, Y, torch.tensor(7)]], [(X, Y)], [{}]),
    ],
)
def test_take_batches_accepts_each_form(data: Any, args: Any, kwargs: Any) -> None:
    taken = take_batches(data, TwoInputs(), 10)
    assert [batch.args for batch in taken] == args
    assert [batch.kwargs for batch in taken] == kwargs


def test_take_batches_process_func_picks_the_input() -> None:
    taken = take_batches([(X, torch.tensor([1, 2]))], TwoInputs(), 10, lambda pair: pair[0])
    assert taken[0].args[0] is X
    assert len(taken[0].args) == 1


def test_take_batches_counts_for_loaders_only() -> None:
    seen = []

    def loader() -> Iterator[Tensor]:
        for number in range(100):
            seen.append(number)
            yield X

    assert len(take_batches(loader(), TwoInputs(), 3)) == 3
    assert seen == [0, 1, 2]
    assert len(take_batches([X] * 5, TwoInputs(), 3)) == 5


def test_batch_run_gives_copies_so_that_in_place_models_keep_the_data() -> None:
    take_batches(X, nn.ReLU(inplace=True), 1)[0].run(nn.ReLU(inplace=True)).fill_(5)
    assert torch.equal(X, torch.ones(2, 3))


@pytest.mark.parametrize("data", [[], iter([]), 3, "text", ["text"], [None]])
def test_take_batches_refuses_what_holds_no_tensor(data: Any) -> None:
    with pytest.raises(DataError):
        take_batches(data, TwoInputs(), 10)


def test_take_batches_refuses_a_count_below_one() -> None:
    with pytest.raises(ConfigError, match="num_batches is 0"):
        take_batches(X, TwoInputs(), 0)
