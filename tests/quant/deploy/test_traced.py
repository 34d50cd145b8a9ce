"""torch.jit.trace of converted models: no warning, and the same codes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import DeQuantStub, QuantStub
from tests.quant.deploy.models import BATCHES, IMAGE, converted


class Attends(nn.Module):
    """Attention as a function, layer norm, softmax and a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant, self.conv = QuantStub(), DeQuantStub(), nn.Conv2d(3, 4, 1)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Any:
        y = F.gelu(self.norm(self.conv(self.quant(x))))
        return self.dequant(torch.softmax(F.scaled_dot_product_attention(y, y, y), -1))


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_trace_of_attention_norm_and_softmax_gives_no_warning_and_the_same_values(front_end: str) -> None:
    model = converted(front_end, model=Attends())

    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, IMAGE)

    assert torch.equal(traced(BATCHES[1]), model(BATCHES[1]))
