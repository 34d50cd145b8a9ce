"""GlobalFakeQuantSwitch off: every prepared model computes what its float model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import DeQuantStub, FakeQuantState, GlobalFakeQuantSwitch, QuantStub, set_fake_quantize
from tests.models import Stubbed
from tests.quant.stages import FRONT_ENDS


class Resizing(Stubbed):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 2, 1)

    def body(self, x: Any) -> Any:
        y = F.interpolate(self.conv(x), scale_factor=2.0, mode="bilinear")
        return self.last(F.pad(y, (1, 1), value=0.3))


class Attending(Stubbed):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def body(self, x: Any) -> Any:
        values, weights = self.attention(x, x, x)
        return values + 0.0 * weights.sum()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.gru = nn.GRU(8, 4, batch_first=True)
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.lstm(self.gru(self.quant(x))[0])[0])


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last, self.dequant = nn.Embedding(10, 8), nn.Linear(10, 3), DeQuantStub()

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.last(F.pad(self.table(x), (1, 1), value=0.3)))


CASES = {
    "resize": (Resizing, lambda: torch.randn(2, 3, 8, 8)),
    "attention": (Attending, lambda: torch.randn(2, 5, 8)),
    "embedding": (Embedding, lambda: torch.arange(10)),
    "recurrent": (Recurrent, lambda: torch.randn(2, 5, 8)),
}
RUNS = [(c, f) for c in CASES for f in FRONT_ENDS if (c, f) != ("embedding", "fx")]  # fx puts stubs at float inputs


def error_of(model: Any, truth: Tensor, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - truth).abs().max())


@pytest.mark.parametrize(("case", "front"), RUNS)
def test_switch_off_equals_float_in_validation_and_qat(case: str, front: str) -> None:
    torch.manual_seed(0)
    make, data = CASES[case]
    model, x = make().eval(), data()
    with torch.no_grad():
        truth = model(x)
    prepared = FRONT_ENDS[front][0](model, [x])
    assert error_of(prepared, truth, x) > 1e-3
    rounded = prepared(x)
    GlobalFakeQuantSwitch.disable()
    try:
        assert error_of(prepared, truth, x) < 2e-6
        prepared.train()
        set_fake_quantize(prepared, FakeQuantState.QAT)
        assert error_of(prepared, truth, x) < 2e-6
    finally:
        GlobalFakeQuantSwitch.enable()
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    assert rounded.shape == prepared(x).shape
