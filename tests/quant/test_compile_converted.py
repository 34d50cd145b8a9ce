"""torch.compile of a converted model: the same codes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.quant.deploy.models import IMAGE, converted


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def test_compiled_fx_model_gives_the_same_results() -> None:
    model = converted("fx")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected, actual = model(IMAGE), compiled(IMAGE)
    assert {name: torch.equal(actual[name], value) for name, value in expected.items()} == {
        "logits": True,
        "boxes": True,
    }
