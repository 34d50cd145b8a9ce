"""Constants that grow with the batch size, computed in ONNX Runtime as torch made them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from profiler.quant.deploy.batch_values import Growing, GrowingConstants, Line, Ramp, Sizes, Spread
from profiler.quant.deploy.graph import GraphBuilder, Value
from profiler.quant.deploy.session import make_session, run_session
from tests.quant.deploy.functions import rand

SIZES = Sizes(2, 5)
ROW = rand(3, 4)
CONSTANTS: dict[str, tuple[Callable[[int], Tensor], type]] = {
    "shape": (lambda n: torch.tensor([n, 3, 4]), Line),
    "two sizes in a shape": (lambda n: torch.tensor([n, 3 * n + 1, 4]), Line),
    "one number": (lambda n: torch.tensor(7 - n), Line),
    "zeros": (lambda n: torch.zeros(2, n, 3), Spread),
    "a row per image": (lambda n: ROW[:1].expand(n, 4), Spread),
    "true by twice the batch": (lambda n: torch.ones(2 * n, 1, n, dtype=torch.bool), Spread),
    "row numbers": (torch.arange, Ramp),
    "row numbers in float": (lambda n: torch.arange(float(n)).reshape(-1, 1), Ramp),
    "a count in float": (lambda n: torch.tensor(n * 4.0), Line),
    "row numbers from behind": (lambda n: torch.arange(n).flip(0), Ramp),
    "positions, batch first": (lambda n: torch.arange(n * 6).reshape(n, 6)[:, 1:3], Ramp),
    "positions, batch second": (lambda n: torch.arange(3 * n * 4).reshape(3, n, 4)[1:], Ramp),
    "flat positions, batch first": (lambda n: torch.arange(n * 6).reshape(n, 6)[:, 1:3].reshape(-1), Ramp),
    "flat positions, batch second": (lambda n: torch.arange(3 * n * 4).reshape(3, n, 4)[1:].reshape(-1), Ramp),
}
FIXED: dict[str, Callable[[int], Tensor]] = {
    "fractions": lambda n: torch.tensor([1.0 / n]),
    "steps": lambda n: torch.zeros(n + n // 4),
    "codes": lambda n: torch.full((1,), n, dtype=torch.int8),
    "permutation": lambda n: torch.tensor([1, 0, 3, 2, 4])[:n],
    "rows of a table": lambda n: rand(6, 4)[:n],
    "half of the batch": lambda n: torch.tensor([n // 2]),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_growing_constant_is_computed_at_any_size(name: str) -> None:
    make, kind = CONSTANTS[name]

    growing = SIZES.growing(make(SIZES.first), make(SIZES.second))

    assert isinstance(growing, kind)
    for size in (1, 2, 3, 5, 8):
        actual = computed(growing, size, make(size).dtype)
        assert torch.equal(actual, make(size))


@pytest.mark.parametrize("name", FIXED)
def test_constant_that_grows_otherwise_is_not_known(name: str) -> None:
    make = FIXED[name]

    assert SIZES.growing(make(SIZES.first), make(SIZES.second)) is None


@pytest.mark.parametrize(
    ("rise", "start", "expected"),
    [([1, 0], [0, 4], [-1, 4]), ([3, 0], [2, 4], [-1, 4]), ([1, 1], [0, 0], None), ([1, 0], [0, 0], None)],
)
def test_reshape_takes_one_free_number_and_no_zero(
    rise: list[int], start: list[int], expected: list[int] | None
) -> None:
    short = Line(torch.tensor(rise), torch.tensor(start)).at_most_one()

    assert (None if short is None else short.tolist()) == expected


def test_names_stay_clear_of_those_taken() -> None:
    growing = GrowingConstants(Value("x", torch.float32), {"batch/Shape", "batch_/Mul"})

    assert growing.size.name.startswith("batch__/")


def computed(growing: Growing, size: int, dtype: torch.dtype) -> Tensor:
    source = Value("x", torch.float32, (size, 2))
    constants = GrowingConstants(source, set())
    name = constants.name_of(growing, dtype)
    builder: GraphBuilder = constants.builder
    session = make_session(builder.model([source], [Value(name, dtype)]), 0)
    return run_session(session, ["x"], [torch.zeros(size, 2)])[0]
