"""What the planner does with masks, indices, numbers and comparisons around arithmetic."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from profiler.quant import (
    DeQuantStub,
    QuantStub,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat_fx,
)
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.naming import op_name
from tests.quant.ops.arithmetic_cases import batches, distance, network
from tests.quant.stages import calibrate, eager, fx


class Masked(nn.Module):
    """A mask and positions come in from outside, of kinds that tracing cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant, self.conv = QuantStub(), DeQuantStub(), nn.Conv2d(3, 4, 1)

    def forward(self, x: Any, mask: Any, positions: Any) -> Any:
        x = self.conv(self.quant(x))
        chosen = torch.where(mask, x, x * 0.5)
        return self.dequant(torch.gather(chosen * mask, 1, positions) + positions)


def stubs_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, QuantStub)]


@pytest.mark.parametrize("knows_kinds", [False, True])
def test_masks_and_positions_are_not_quantized(knows_kinds: bool) -> None:
    torch.manual_seed(0)
    model = Masked().eval()
    inputs = [(x, x[:, :1] > 0, torch.randint(0, 4, (2, 2, 6, 6))) for x in batches()]
    example = {"example_inputs": inputs[0]} if knows_kinds else {}
    prepared: Any = prepare_qat_fx(model, {"": default_calib_8bit_fake_quant_qconfig}, **example)
    prepared = calibrate(_Star(prepared), inputs).inner
    expected = model(*inputs[0])
    assert distance(prepared(*inputs[0]).detach(), expected.detach()) < 0.02
    converted = convert_fx(prepared)
    assert distance(converted(*inputs[0]), prepared(*inputs[0]).detach()) < 0.01
    if knows_kinds:
        assert stubs_of(prepared) == ["quant"]


def scaled_ops(model: nn.Module) -> set[str]:
    names = (name.rpartition(".") for name, m in model.named_modules() if isinstance(m, FakeQuantize))
    return {op_name(owner) for owner, _, role in names if role == "activation_post_process"}


class _Star(nn.Module):
    """Takes its inputs as one tuple."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Any) -> Any:
        return self.inner(*batch)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x * (x > 0),
        lambda m, x: torch.where(x > 0.1, x, x * 0.1),
        lambda m, x: x.topk(2, 1)[0] + x.max(1, keepdim=True).values,
        lambda m, x: torch.gather(x, 1, x.max(1, keepdim=True)[1]),
        lambda m, x: 1 - x / 2,
        lambda m, x: x * m.temperature,
        lambda m, x: x.masked_fill(m.keep, -1e9).relu(),
    ],
)
def test_both_front_ends_quantize_the_same_ops_under_the_same_names(body: Any) -> None:
    graph, running = fx(network(body), batches()), eager(network(body), batches())
    assert scaled_ops(graph) == scaled_ops(running)
    x = batches()[0]
    assert torch.equal(graph(x), running(x))
    assert torch.equal(convert_fx(graph)(x), convert(running)(x))


def test_comparison_is_an_op_of_its_own_and_its_result_lies_outside() -> None:
    prepared = fx(network(lambda m, x: x * (x > 0).float()), batches())
    assert "_generated_gt_0" in dict(prepared.named_modules())
    assert any("float" in name for name in stubs_of(prepared))  # a float mask is quantized like any float operand


def test_constant_is_not_fused_into_a_convolution() -> None:
    prepared = fx(network(lambda m, x: x + m.temperature), batches())
    assert "_generated_add_0" in dict(prepared.named_children())
    assert prepared.conv._get_name() == "Conv2d"


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: 1 - x * m.gain / (x.abs() + m.temperature),
        lambda m, x: torch.cat([x @ x.transpose(2, 3), torch.einsum("bchw,bchv->bcwv", x, x)], 1),
        lambda m, x: torch.where(x > 0, x, x * 0.1).masked_fill(m.keep, -1e9).relu(),
        lambda m, x: torch.stack([x.sort(1)[0], x.cumsum(1)]).sum(0),
    ],
)
def test_converted_model_traces_without_a_warning_to_equal_outputs(body: Any) -> None:
    converted = convert_fx(fx(network(body), batches()))
    converted(batches()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(converted, batches()[0])
    for x in batches():
        assert torch.equal(traced(x), converted(x))
