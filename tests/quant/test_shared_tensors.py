"""Tensors that a forward makes and writes into, and parameters that other code reads: right in every front end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import quantize

FRONT_ENDS = ("auto", "record")


class TwoConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)


class WritesItems(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(4, 3, 8, 8)
        z[..., :4] = self.a(x)[..., 4:]
        y: Tensor = self.b(z)
        return y


class Copies(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(4, 3, 8, 8)
        z.copy_(self.a(x))
        y: Tensor = self.b(z)
        return y


class Accumulates(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(4, 3, 8, 8)
        z += self.a(x)
        return z


class ReadsWeight(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(self.b(x) / self.b.weight.abs().max())
        return y


class ScalesWeight(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.conv2d(self.a(x), self.b.weight * 2, padding=1) + self.b(x)
        return y


class MakesState(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 1, 8, 8)
        if x.sum() > 1e9:
            x = x + 1
        return torch.tanh(self.a(x) + state) * 2


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("network", [WritesItems, Copies, Accumulates, ReadsWeight, ScalesWeight, MakesState])
@pytest.mark.parametrize("num_batches", [1, 3])
def test_quantize_gives_the_model_that_was_given(network: type[nn.Module], front_end: str, num_batches: int) -> None:
    torch.manual_seed(0)
    model = network().eval()
    stages = quantize(model, [torch.randn(4, 3, 8, 8) for _ in range(num_batches)], march="bayes", frontend=front_end)

    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected, again = model(x), stages.quantized(torch.randn(4, 3, 8, 8))
        actual, calib = stages.quantized(x), stages.calib(x)

    assert float((actual - expected).norm() / expected.norm()) < 0.05
    assert float((calib - expected).norm() / expected.norm()) < 0.05
    assert not torch.equal(again, actual)


@pytest.mark.parametrize("num_batches", [1, 4])
def test_quantize_tensor_that_the_forward_makes_has_one_stub_for_all_batches(num_batches: int) -> None:
    stages = quantize(MakesState().eval(), [torch.randn(4, 3, 8, 8) for _ in range(num_batches)], march="bayes")
    stubs = [name for name, _ in stages.calib.named_children() if name.startswith("constant")]
    assert stages.frontend == "record"
    assert len(stubs) == 1


@pytest.mark.parametrize("front_end", ["fx", "record"])
def test_quantize_names_the_module_whose_parameters_other_code_reads(front_end: str) -> None:
    stages = quantize(ScalesWeight().eval(), [torch.randn(4, 3, 8, 8)], march="bayes", frontend=front_end)
    reasons = {effect.op: effect.reason for effect in stages.effects}
    assert "other code reads its parameters" in reasons["b"]
