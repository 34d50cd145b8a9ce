"""A sample with planted faults: right in float, several points worse in int8, healed when they are repaired.

An eager model, with its own stubs and its own `fuse_modules`. `FAULTS` names what is wrong with it. Every repair keeps
the float function, so `load(repaired=True)` gives the same logits and better int8 results, and
`load(repaired={"shared_conv"})` repairs one fault alone. The weights in `weights/` are made by
`python -m sample_models.train_pitfalls`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    FloatFunctional,
    March,
    QuantStub,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_8bit_weight_32bit_out_fake_quant_qconfig,
    fuse_modules,
    prepare_qat,
    set_fake_quantize,
    set_march,
)
from sample_models import digits
from sample_models.conv_module import ConvModule
from sample_models.pitfalls_repairs import REPAIRS, StateDict
from sample_models.training import load_state

if TYPE_CHECKING:
    from profiler import ProfileReport

NAME = "pitfalls"


@dataclass(frozen=True)
class PlantedFault:
    """A fault, the op that has it, the rule that finds it there, and other ops at which it may show."""

    rule: str
    op: str
    also: tuple[str, ...]
    text: str


FAULTS: dict[str, PlantedFault] = {
    "raw_input": PlantedFault("IN2", "quant", (), "pixels 0..255 enter as they are: half of the codes stay unused"),
    "shared_conv": PlantedFault(
        "SH1",
        "branches.shared.conv",
        (),
        "one convolution serves two branches whose ranges differ 48 times",
    ),
    "large_channel": PlantedFault(
        "RG1",
        "wide.conv",
        ("narrow.conv",),
        "one channel is 60 times the others; the next layer's weights make up for it",
    ),
    "second_consumer": PlantedFault(
        "FU1",
        "split.conv",
        ("split.bn", "split.side.conv"),
        "the norm cannot fuse: another layer reads the convolution too",
    ),
    "functional_relu": PlantedFault(
        "FU1", "mix.conv", ("mix.relu_0",), "F.relu cannot fuse: the negative side of the convolution uses up the codes"
    ),
    "int8_output": PlantedFault("HP1", "fc", (), "the logits are rounded to int8"),
}
"""Fault name -> what it is, in forward order."""


class SharedBranches(nn.Module):
    """Strokes along rows and along columns, each branch through the same convolution.

    Args:
        cin: input channels.
        mid: channels of each branch.
        cout: channels that each branch gives.
        is_shared: False gives the branch of columns a copy of the convolution.
    """

    def __init__(self, cin: int, mid: int, cout: int, is_shared: bool) -> None:
        super().__init__()
        self.is_shared = is_shared
        self.rows = ConvModule(cin, mid, (1, 5), stride=2, act=nn.ReLU)
        self.columns = ConvModule(cin, mid, (5, 1), stride=2, act=nn.ReLU)
        self.shared = ConvModule(mid, mid, 3, norm=False, act=nn.ReLU)
        if not is_shared:
            self.shared_copy = ConvModule(mid, mid, 3, norm=False, act=nn.ReLU)
        self.rows_out = ConvModule(mid, cout, 3, act=nn.ReLU)
        self.columns_out = ConvModule(mid, cout, 3, act=nn.ReLU)
        self.join = FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.shared(self.rows(x))
        columns = (self.shared if self.is_shared else self.shared_copy)(self.columns(x))
        joined: torch.Tensor = self.join.cat([self.rows_out(rows), self.columns_out(columns)], 1)
        return joined


class SplitNorm(nn.Module):
    """A convolution with a norm, and a side branch that reads either the convolution (faulty) or the norm.

    Args:
        cin: input channels.
        cout: channels of the convolution and its norm.
        side: channels of the side branch.
        is_fused: whether the side branch reads the norm, so that nothing hinders fusion.
    """

    def __init__(self, cin: int, cout: int, side: int, is_fused: bool) -> None:
        super().__init__()
        self.is_fused = is_fused
        self.conv = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.side = ConvModule(cout, side, 1, act=nn.ReLU)
        self.join = FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw = self.conv(x)
        normed = self.bn(raw)
        joined: torch.Tensor = self.join.cat([normed, self.side(normed if self.is_fused else raw)], 1)
        return joined

    def fuse_modules(self) -> None:
        """Only the repaired form fuses its norm: fusing would change what the second consumer reads."""
        if self.is_fused:
            fuse_modules(self, ["conv", "bn"], inplace=True)


class Mix(nn.Module):
    """A convolution and a ReLU, called as a function (faulty) or as a module."""

    def __init__(self, cin: int, cout: int, is_module: bool) -> None:
        super().__init__()
        self.is_module = is_module
        self.conv = nn.Conv2d(cin, cout, 3, padding=1)
        if is_module:
            self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.relu(x) if self.is_module else F.relu(x)

    def fuse_modules(self) -> None:
        """Eager fusion sees modules only."""
        if self.is_module:
            fuse_modules(self, ["conv", "relu"], inplace=True)


class Pitfalls(nn.Module):
    """Pixels `[N, 1, 32, 32]` in 0..255 to logits `[N, 10]`, with the faults that are not in `repaired`."""

    def __init__(self, repaired: Collection[str] = ()) -> None:
        super().__init__()
        self.repaired = frozenset(repaired)
        self.quant = QuantStub(scale=1 / 128) if "raw_input" in self.repaired else QuantStub()
        self.stem = ConvModule(1, 4, 4, stride=2, padding=0, act=nn.ReLU)
        self.branches = SharedBranches(4, 4, 4, is_shared="shared_conv" not in self.repaired)
        self.wide = ConvModule(8, 64, 1, act=nn.ReLU)
        self.narrow = ConvModule(64, 4, 1, stride=2, act=nn.ReLU)
        self.split = SplitNorm(4, 4, 4, is_fused="second_consumer" in self.repaired)
        self.mix = Mix(8, 8, is_module="functional_relu" in self.repaired)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, digits.NUM_CLASSES)
        self.dequant = DeQuantStub()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = digits.normalise(pixels) if "raw_input" in self.repaired else pixels
        x = self.branches(self.stem(self.quant(x)))
        x = self.narrow(self.wide(x))
        x = self.pool(self.mix(self.split(x))).flatten(1)
        logits: torch.Tensor = self.dequant(self.fc(x))
        return logits

    def fuse_modules(self) -> None:
        """All that can be fused by naming modules."""
        for module in self.modules():
            if isinstance(module, ConvModule | SplitNorm | Mix):
                module.fuse_modules()


def build(repaired: bool | Collection[str] = False) -> nn.Module:
    """The network with fresh weights, in train mode.

    Args:
        repaired: True for all faults, or the names of those to repair.

    Raises:
        ValueError: for a name that is not in `FAULTS`.
    """
    return Pitfalls(_names(repaired))


def load(repaired: bool | Collection[str] = False) -> nn.Module:
    """The trained network in eval mode; whatever is repaired, its float logits are the same.

    Args:
        repaired: as in `build`.
    """
    state: StateDict = load_state(NAME)
    names = _names(repaired)
    for name in FAULTS:
        if name in names and name in REPAIRS:
            state = REPAIRS[name](state)
    model = Pitfalls(names)
    model.load_state_dict(state)
    return model.eval()


def _names(repaired: bool | Collection[str]) -> frozenset[str]:
    names = frozenset(FAULTS if repaired is True else repaired or ())
    if unknown := names - FAULTS.keys():
        raise ValueError(f"unknown faults {sorted(unknown)}; expected some of {list(FAULTS)}")
    return names


def prepare(model: nn.Module, purpose: Literal["calib", "qat"] = "calib") -> nn.Module:
    """Fuses `model` in place and gives its fake-quant form, as an eager user writes it.

    Args:
        model: from `load` or `build`.
        purpose: calibration or training; decides the qconfigs.
    """
    assert isinstance(model, Pitfalls)
    is_calib = purpose == "calib"
    set_march(March.BAYES)
    model.fuse_modules()
    qconfig = default_calib_8bit_fake_quant_qconfig if is_calib else default_qat_8bit_fake_quant_qconfig
    model.qconfig = qconfig  # type: ignore[assignment]
    if "int8_output" in model.repaired:
        out_qconfig = (
            default_calib_8bit_weight_32bit_out_fake_quant_qconfig
            if is_calib
            else default_qat_8bit_weight_32bit_out_fake_quant_qconfig
        )
        model.fc.qconfig = out_qconfig  # type: ignore[assignment]
    return prepare_qat(model)


@torch.no_grad()
def calibrate(calib_model: nn.Module) -> nn.Module:
    """Observes the calibration batches and leaves `calib_model` ready to be evaluated in int8."""
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.CALIBRATION)
    for batch in calibration_batches():
        calib_model(batch)
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.VALIDATION)
    return calib_model


def calibration_batches() -> list[torch.Tensor]:
    """Ten batches of 32 training images, pixels 0..255."""
    return digits.calibration_batches(_raw)


def evaluate(model: nn.Module) -> float:
    """Accuracy in percent on the 397 held-out images."""
    return digits.accuracy(model, _raw)


def _raw(pixels: torch.Tensor) -> torch.Tensor:
    return pixels


def profile(
    out_dir: str | Path | None = None, *, repaired: bool | Collection[str] = False, **kwargs: Any
) -> ProfileReport:
    """Calibrates the network eagerly and profiles it, as a user would."""
    from profiler import model_profiler

    calib_model = calibrate(prepare(load(repaired)))
    report: ProfileReport = model_profiler(
        calib_model, calibration_batches(), evaluate=evaluate, out_dir=out_dir, **kwargs
    )
    return report
