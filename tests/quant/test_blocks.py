"""Cache-sized blocks change nothing: rounding in pieces equals torch's own kernels and the unfused order of steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.quant.affine import fake_quantize, qinfo, round_to_grid
from profiler.quant.blocks import BLOCK_ELEMENTS, channel_blocks, flat_blocks, is_plain_eager, row_blocks
from profiler.quant.fake_quant import FakeQuantize

INT8 = qinfo("qint8")


def layouts() -> dict[str, Tensor]:
    """Larger than a block, dense in two orders, and with gaps."""
    x = torch.randn(2, 24, 70, 65, generator=torch.Generator().manual_seed(0)) * 3
    return {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3),
        "strided": x[:, ::2, 1:],
        "empty": x[:0],
        "scalar": x[0, 0, 0, 0],
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("scale", [0.011, 2.0**-5])
def test_fake_quantize_every_layout_equals_torch_kernel(layout: str, scale: float) -> None:
    x, s = layouts()[layout], torch.tensor(scale)
    expected = torch.fake_quantize_per_tensor_affine(x, s, torch.zeros((), dtype=torch.int32), -128, 127)
    assert torch.equal(fake_quantize(x, s, INT8), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_fake_quantize_per_channel_equals_torch_kernel(axis: int) -> None:
    x = torch.randn(300, 500, 2, 1)
    s = torch.rand(x.shape[axis]) * 0.05 + 1e-4
    zeros = torch.zeros(s.shape, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, s, zeros, axis, -128, 127)
    assert torch.equal(fake_quantize(x, s, INT8, axis), expected)


@pytest.mark.parametrize("layout", layouts())
def test_fake_quantize_gradient_equals_torch_kernel(layout: str) -> None:
    x, s = layouts()[layout], torch.tensor(0.02)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(x.shape)
    fake_quantize(ours, s, INT8).backward(upstream)
    torch.fake_quantize_per_tensor_affine(theirs, s, torch.zeros((), dtype=torch.int32), -128, 127).backward(upstream)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_fake_quantize_nan_stays_nan_and_infinity_goes_to_the_ends() -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf")])
    y = fake_quantize(x, torch.tensor(0.5), INT8)
    assert torch.isnan(y[0])
    assert y[1:].tolist() == [63.5, -64.0]


def test_fake_quantize_is_traced_with_torch_kernels() -> None:
    fake_quant = FakeQuantize().eval()
    fake_quant.set_qparams(0.1)
    traced = torch.jit.trace(fake_quant, torch.randn(3, 4))
    x = torch.randn(7, 5)
    assert "fake_quantize_per_tensor_affine" in str(traced.graph)
    assert torch.equal(traced(x), fake_quant(x))


@pytest.mark.parametrize("scale", [0.011, 0.05, 2.0**-4, 1.0, 7.0])
@pytest.mark.parametrize("activation", ["", "relu", "relu6"])
def test_round_in_place_equals_activation_then_fake_quant(scale: float, activation: str) -> None:
    fake_quant = FakeQuantize().eval()
    fake_quant.set_qparams(scale)
    fake_quant.disable_observer()
    x = torch.cat([torch.randn(2**18) * 5, torch.arange(-300, 300) * (scale / 2), torch.tensor([6.0, -0.0])])
    function = {"": lambda v: v, "relu": F.relu, "relu6": F.relu6}[activation]
    bounds = {"": (-float("inf"), float("inf")), "relu": (0.0, float("inf")), "relu6": (0.0, 6.0)}[activation]
    expected = fake_quant(function(x))
    assert fake_quant.only_rounds(x)
    assert torch.equal(fake_quant.round_in_place(x.clone(), *bounds), expected)


def test_only_rounds_is_false_while_someone_observes_watches_or_differentiates() -> None:
    fake_quant, x = FakeQuantize(), torch.randn(4)
    assert not fake_quant.eval().only_rounds(x)  # not calibrated
    fake_quant.set_qparams(0.1)
    assert fake_quant.only_rounds(x)
    assert not fake_quant.train().only_rounds(x)
    fake_quant.eval()
    assert not fake_quant.only_rounds(x.double())
    assert not fake_quant.only_rounds(x.clone().requires_grad_())
    handle = fake_quant.register_forward_hook(lambda *_: None)
    assert not fake_quant.only_rounds(x)
    handle.remove()
    fake_quant.disable_fake_quant()
    assert not fake_quant.only_rounds(x)


def test_round_to_grid_may_write_over_its_input() -> None:
    x = torch.randn(3, BLOCK_ELEMENTS)
    expected = round_to_grid(x, torch.tensor(0.1), -128, 127)
    assert torch.equal(round_to_grid(x, torch.tensor(0.1), -128, 127, out=x), expected)


def test_blocks_cover_every_element_once() -> None:
    x = torch.zeros(5, 7, 100, 100)
    for layout in (x, x.to(memory_format=torch.channels_last), x.transpose(0, 3)):
        for (piece,) in flat_blocks(layout):
            piece.add_(1)
    assert bool((x == 2).all())  # twice x itself, once a copy
    for piece, factor in channel_blocks(x, torch.arange(5.0).reshape(5, 1, 1, 1)):
        piece.mul_(factor)
    assert torch.equal(x[:, 0, 0, 0], torch.arange(5.0) * 2)
    rows = [piece for (piece,) in row_blocks(torch.zeros(300, 1000))]
    assert [len(piece) for piece in rows] == [131, 131, 38]


def test_is_plain_eager_refuses_recorded_operators() -> None:
    x = torch.zeros(1)
    assert is_plain_eager(x)
    assert not is_plain_eager(torch.zeros(1, device="meta"))
    with TorchDispatchMode():
        assert not is_plain_eager(x)
