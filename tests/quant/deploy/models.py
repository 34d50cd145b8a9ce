"""Small converted models for the deployment tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from profiler.quant import (
    DeQuantStub,
    FloatFunctional,
    March,
    QConfig,
    QuantStub,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    set_march,
)
from tests.quant.stages import eager, fx

IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
BATCHES = [IMAGE, IMAGE.flip(0) * 1.5]


class Net(nn.Module):
    """Convolution, fused add, pooling, linear; two heads, one of them of high precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant_a, self.dequant_b = QuantStub(), DeQuantStub(), DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.block, self.norm, self.skip = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), FloatFunctional()
        self.relu, self.pool, self.flatten = nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        self.fc, self.head = nn.Linear(8 * 36, 5), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(self.quant(image))
        x = self.relu(self.skip.add(self.norm(self.block(x)), x))
        x = self.pool(x)
        return {"logits": self.dequant_a(self.fc(self.flatten(x))), "boxes": self.dequant_b(self.head(x))}


def converted(
    front_end: str = "fx", qconfig: QConfig = default_calib_8bit_fake_quant_qconfig, model: nn.Module | None = None
) -> Any:
    """Converted `Net` (or another one) whose head has a high-precision output."""
    set_march(March.BAYES)
    model = (Net() if model is None else model).eval()
    if hasattr(model, "head"):
        model.head.qconfig = default_calib_8bit_weight_32bit_out_fake_quant_qconfig  # type: ignore[assignment]
    return convert_fx(fx(model, BATCHES, qconfig)) if front_end == "fx" else convert(eager(model, BATCHES, qconfig))
