"""A network with two heads in every prepared form, for the tests of parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import (
    QConfig,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
)
from profiler.quant.fx.planning import from_dicts
from profiler.quant.record.prepare import prepare_recorded
from tests.models import Stubbed
from tests.quant.stages import calibrate

PREPARE: dict[str, Callable[[nn.Module, QConfig], nn.Module]] = {
    "eager": lambda model, q: prepare_qat(_with(model, q)),
    "fx": lambda model, q: prepare_qat_fx(model, {"": q}),
    "recorded": lambda model, q: prepare_recorded(model, [((batches()[0],), {})], from_dicts({"": q})),
}
CONVERT = {"eager": convert, "fx": convert_fx, "recorded": convert}


class Part(nn.Module):
    """conv, norm, relu, dropout, a `+` and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.relu(self.norm(self.conv(x))) + x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class TwoHeads(Stubbed):
    """One stem, two heads of the same kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.first, self.second = Part(), Part()
        self.dequant2 = self.dequant

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return torch.cat([self.first(x), self.second(x)], 1)


def two_heads() -> nn.Module:
    torch.manual_seed(0)
    return TwoHeads().eval()


def batches(scale: float = 1.0, num: int = 3) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [scale * torch.randn(4, 3, 8, 8, generator=rng) for _ in range(num)]


def _with(model: nn.Module, qconfig: QConfig) -> nn.Module:
    model.qconfig = qconfig  # type: ignore[assignment]
    return model


def values(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """All parameters, statistics and scales of a part; the flags of fake quants are no values."""
    state = model.get_submodule(prefix).state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if not name.endswith("_enabled")}


def assert_same(values_before: dict[str, Tensor], model: nn.Module, prefix: str) -> None:
    now = values(model, prefix)
    assert now.keys() == values_before.keys()
    assert [name for name, tensor in now.items() if not torch.equal(tensor, values_before[name])] == []


def ops_in(model: nn.Module, prefix: str) -> list[nn.Module]:
    """Modules of a part that are no mere containers (a copied graph module makes these anew)."""
    return [m for m in model.get_submodule(prefix).modules() if type(m) not in (nn.Module, Part)]


def train_steps(model: nn.Module, num: int = 2) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for x in batches(5.0, num):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def calibrated(front_end: str, qconfig: QConfig = default_calib_8bit_fake_quant_qconfig) -> nn.Module:
    model: nn.Module = calibrate(PREPARE[front_end](two_heads(), qconfig), batches())
    return model


def trainable(front_end: str, qconfig: QConfig = default_qat_8bit_fake_quant_qconfig) -> nn.Module:
    """A QAT model with the scales of a calibration."""
    model = PREPARE[front_end](two_heads(), qconfig)
    model.load_state_dict(calibrated(front_end).state_dict())
    return model
