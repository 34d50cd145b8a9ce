from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError
from profiler.quant import convert, convert_fx
from profiler.quant.states import named_fake_quants
from tests.models import (
    CalledTwice,
    InPlaceAdd,
    InPlaceRelu,
    NestedLoop,
    Residual,
    SharedModule,
    UnsupportedMiddle,
    WithFunctional,
    images,
    make,
)
from tests.quant.stages import eager, fx

NETS = (Residual, SharedModule, CalledTwice, InPlaceAdd, InPlaceRelu, NestedLoop, WithFunctional, UnsupportedMiddle)


def converted(cls: type[nn.Module]) -> tuple[Any, Any]:
    prepared = fx(make(cls), images())
    return prepared, convert_fx(prepared)


@pytest.mark.parametrize("cls", NETS)
def test_convert_fx_output_is_near_the_validated_one(cls: type[nn.Module]) -> None:
    prepared, integer = converted(cls)
    for x in images():
        expected, y = prepared(x), integer(x)
        assert type(y) is Tensor
        assert float((y - expected).detach().abs().max()) <= 0.03 * float(expected.detach().abs().max())
    assert list(named_fake_quants(integer)) == []


@pytest.mark.parametrize("cls", NETS)
def test_convert_fx_traced_output_equals_untraced_bit_for_bit(cls: type[nn.Module]) -> None:
    _, integer = converted(cls)
    traced = torch.jit.trace(integer, images()[0], check_trace=False)
    for x in images():
        assert torch.equal(traced(x), integer(x))


@pytest.mark.parametrize("stage", ["prepared", "converted"])
@pytest.mark.parametrize("cls", [Residual, CalledTwice, UnsupportedMiddle])
def test_fx_stage_survives_deepcopy_pickle_and_state_dict(stage: str, cls: type[nn.Module]) -> None:
    model = converted(cls)[stage == "converted"]
    x = images()[0]
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)
    copied = copy.deepcopy(model)
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied(x), expected)


@pytest.mark.parametrize("cls", [SharedModule, CalledTwice])
def test_convert_eager_and_fx_of_one_unfused_net_are_equal(cls: type[nn.Module]) -> None:
    by_eager = convert(eager(make(cls), images()))
    _, by_fx = converted(cls)
    if cls is SharedModule:
        assert torch.equal(by_fx(images()[0]), by_eager(images()[0]))
    assert torch.allclose(by_fx(images()[0]), by_eager(images()[0]), atol=0.2)


def test_convert_fx_eager_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected the result of prepare_qat_fx; use convert"):
        convert_fx(eager(make(Residual), images()))


def test_convert_fx_leaves_the_prepared_model_as_it_was() -> None:
    prepared, _ = converted(Residual)
    before = prepared(images()[0])
    state = copy.deepcopy(prepared.state_dict())
    convert_fx(prepared)
    assert all(torch.equal(state[k], v) for k, v in prepared.state_dict().items())
    assert torch.equal(prepared(images()[0]), before)


def test_convert_fx_keeps_the_effect_report() -> None:
    prepared, integer = converted(UnsupportedMiddle)
    assert integer.quant_effects == prepared.quant_effects
    assert integer.quant_leaves == prepared.quant_leaves


def test_convert_fx_inplace_changes_the_model_itself() -> None:
    prepared = fx(make(Residual), images())
    assert convert_fx(prepared, inplace=True) is prepared
    assert list(named_fake_quants(prepared)) == []


def test_convert_fx_empty_batch_passes() -> None:
    assert converted(Residual)[1](torch.zeros(0, 3, 8, 8)).shape == (0, 5)


class UnreadResult(nn.Module):
    """The last sum of the loop, and an auxiliary head, are computed and dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)])
        self.aux = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = x
        for conv in self.convs:
            y = conv(x)
            skip = skip + y
            x = x + y
        self.aux(x)
        return skip


def test_convert_fx_results_that_nobody_reads_need_no_scale() -> None:
    prepared = fx(make(UnreadResult), images())

    converted = convert_fx(prepared)

    names = {name for name, _ in prepared.named_children()}
    assert {"_generated_add_0", "_generated_add_1", "_generated_add_2"} <= names
    assert "_generated_add_3" not in names
    assert not hasattr(prepared, "aux")
    torch.testing.assert_close(converted(images()[0]), prepared(images()[0]), rtol=0.05, atol=0.05)
