from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import default_qat_8bit_fake_quant_qconfig, quantize
from profiler.quant.fx.prepare import prepare_qat_fx
from profiler.quant.ops.batch_norm import FakeQuantBatchNorm
from tests.quant.onnx_check import assert_equals_onnx

SIZES = {"w1": (6, 3, 3, 3), "b1": (6,), "gain": (6,), "shift": (6,), "w2": (5, 6), "b2": (5,)}


class Functions(nn.Module):
    """A network without modules: everything it has is called as a function.

    Args:
        are_buffers: its tensors are buffers, as those of frozen and of generated networks.
        is_fused: nothing stands between the convolution and its batch norm.
    """

    def __init__(self, are_buffers: bool, is_fused: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, size in SIZES.items():
            value = torch.randn(size, generator=generator) * 0.3 + (name == "gain")
            if are_buffers:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))
        self.register_buffer("mean", torch.randn(6, generator=generator) * 0.1)
        self.register_buffer("variance", torch.rand(6, generator=generator) + 0.5)
        self.is_fused = is_fused

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.w1, self.b1, padding=1)
        x = x if self.is_fused else F.gelu(x)
        x = F.relu(F.batch_norm(x, self.mean, self.variance, self.gain, self.shift, False, 0.1, 1e-3))
        return F.linear(x.mean((2, 3)), self.w2, bias=self.b2)


class Modules(nn.Module):
    """The same network with modules."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, eps=1e-3)
        self.linear, self.is_fused = nn.Linear(6, 5), source.is_fused
        with torch.no_grad():
            pairs = [
                (self.conv.weight, source.w1), (self.conv.bias, source.b1), (self.norm.weight, source.gain),
                (self.norm.bias, source.shift), (self.norm.running_mean, source.mean),
                (self.norm.running_var, source.variance), (self.linear.weight, source.w2),
                (self.linear.bias, source.b2),
            ]  # fmt: skip
            for target, value in pairs:
                target.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.is_fused else F.gelu(x)
        return self.linear(F.relu(self.norm(x)).mean((2, 3)))


@pytest.mark.parametrize("frontend", ["fx", "record"])
@pytest.mark.parametrize("are_buffers", [False, True])
@pytest.mark.parametrize("is_fused", [True, False])
def test_functions_only_are_the_same_integers_as_modules(frontend: str, are_buffers: bool, is_fused: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(2, 3, 8, 8, generator=generator),) for _ in range(3)]
    functions = Functions(are_buffers, is_fused).eval()
    found, expected = (quantize(m, batches, frontend=frontend) for m in (functions, Modules(functions).eval()))
    with torch.no_grad():
        for batch in batches:
            assert torch.equal(found.calib(*batch), expected.calib(*batch))
            assert torch.equal(found.quantized(*batch), expected.quantized(*batch))
    assert not [e for e in found.effects[1:] if e.reason]
    assert any(isinstance(m, FakeQuantBatchNorm) for m in found.calib.modules()) is not is_fused
    assert_equals_onnx(found.quantized, *batches[0])


class Odd(nn.Module):
    """Batch norms that no module stands for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 4, 1), kind
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "of the batch":
            return F.relu(F.batch_norm(x, None, None, training=True))
        return F.relu(F.batch_norm(x, self.mean, self.variance, weight=x.mean((0, 2, 3))))


@pytest.mark.parametrize("frontend", ["fx", "record"])
@pytest.mark.parametrize("kind", ["of the batch", "computed gain"])
def test_batch_norm_that_is_no_module_stays_in_float(kind: str, frontend: str) -> None:
    batches = [(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)]
    stages = quantize(Odd(kind), batches, frontend=frontend)
    assert [e.op for e in stages.effects if "no quantized form" in e.reason] == ["batch_norm_0"]
    with torch.no_grad():
        expected, actual = stages.float(*batches[0]), stages.quantized(*batches[0])
    assert float((actual - expected).norm() / expected.norm()) < 0.03


def test_called_batch_norm_trains_and_moves_its_statistics() -> None:
    model = Functions(are_buffers=False, is_fused=False)
    qconfigs = {"": default_qat_8bit_fake_quant_qconfig}
    prepared: Any = prepare_qat_fx(model.eval(), qconfigs, example_inputs=(torch.randn(2, 3, 8, 8),))
    norm = next(m for m in prepared.modules() if isinstance(m, FakeQuantBatchNorm))
    before = norm.running_mean.clone()
    prepared.train()
    prepared(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    assert norm.weight.grad is not None
    assert bool(torch.isfinite(norm.weight.grad).all())
    assert not torch.equal(norm.running_mean, before)
    assert torch.equal(model.mean, before)
