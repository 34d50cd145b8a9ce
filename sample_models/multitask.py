"""A network with one backbone and two heads, each with a data set and a metric of its own: which digit, which quadrant.

The digit task's canvases hold one small digit in the middle, the quadrant task's a large digit somewhere among medium
ones. Calibrated with the digit task's canvases alone, the quadrant head is clipped: nothing in them looks like what it
was trained to find. `docs/multitask.md` says how that is seen and mended. The weights in `weights/` are made by
`python -m sample_models.train_multitask`; `python -m sample_models.multitask --flow eager` (or fx) prints the lower of
the two accuracies at every stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from profiler.quant import (
    DeQuantStub,
    March,
    QuantStub,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    prepare_qat_fx,
    set_march,
)
from sample_models import multitask_data
from sample_models.conv_module import ConvModule
from sample_models.flows import Sample, calibrate, main
from sample_models.multitask_data import Canvases, digit_batches, held_out_digits, held_out_quadrants, quadrant_batches
from sample_models.training import load_weights

if TYPE_CHECKING:
    from profiler import ProfileReport

NAME = "multitask"
OUTPUTS = ("digit_head.fc", "quadrant_head.fc")
STRIDE = 8  # of the features that both heads read
_CHANNELS = 48


class Accuracies(NamedTuple):
    """Share of right answers of each head in percent, on held-out canvases of its own task."""

    digit: float
    quadrant: float


class Backbone(nn.Module):
    """Canvases `[N, 1, 64, 64]` to features `[N, 48, 8, 8]`, still quantized; ReLU6 bounds them for both data sets."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = QuantStub(scale=1 / 128)
        self.stages = nn.Sequential(
            ConvModule(1, 16, 3, stride=2),
            ConvModule(16, 24, 3, stride=2),
            ConvModule(24, 32, 3),
            ConvModule(32, _CHANNELS, 3, stride=2),
            ConvModule(_CHANNELS, _CHANNELS, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.stages(self.quant(x))
        return features

    def fuse_modules(self) -> None:
        """Each stage by itself."""
        _fuse_each(self.stages)


class DigitHead(nn.Module):
    """Which digit: one convolution, the mean over all places, logits `[N, 10]` in float."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = ConvModule(_CHANNELS, 64, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, multitask_data.NUM_CLASSES)
        self.dequant = DeQuantStub()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.dequant(self.fc(self.pool(self.mix(features)).flatten(1)))
        return logits

    def fuse_modules(self) -> None:
        """The convolution."""
        self.mix.fuse_modules()


class QuadrantHead(nn.Module):
    """Where the large digit is: a score per place, softmax over the places, logits `[N, 4]` in float."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.evidence = nn.Sequential(ConvModule(_CHANNELS, channels, 3), ConvModule(channels, channels, 3))
        self.score = nn.Conv2d(channels, 1, 1)
        self.softmax = nn.Softmax(dim=1)
        self.fc = nn.Linear((multitask_data.CANVAS_SIZE // STRIDE) ** 2, multitask_data.NUM_QUADRANTS)
        self.dequant = DeQuantStub()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        attention = self.softmax(self.score(self.evidence(features)).flatten(1))
        logits: torch.Tensor = self.dequant(self.fc(attention))
        return logits

    def fuse_modules(self) -> None:
        """Each convolution by itself."""
        _fuse_each(self.evidence)


class MultiTask(nn.Module):
    """Canvases `[N, 1, 64, 64]` to the digit's logits `[N, 10]` and the quadrant's `[N, 4]`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.digit_head, self.quadrant_head = Backbone(), DigitHead(), QuadrantHead()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone(x)
        return self.digit_head(features), self.quadrant_head(features)


def _fuse_each(blocks: nn.Sequential) -> None:
    for block in blocks:
        block.fuse_modules()  # type: ignore[operator]


def build() -> nn.Module:
    """The network with fresh weights, in train mode."""
    return MultiTask()


def load() -> nn.Module:
    """The trained network in eval mode."""
    return load_weights(build(), NAME)


def calibration_batches() -> list[torch.Tensor]:
    """The common calibration set: ten batches of 32 canvases of the digit task, normalised."""
    return digit_batches()


def prepare(model: nn.Module) -> nn.Module:
    """Int8 everywhere, logits in high precision."""
    set_march(March.BAYES)
    outputs = dict.fromkeys(OUTPUTS, default_calib_8bit_weight_32bit_out_fake_quant_qconfig)
    return prepare_qat_fx(model, {"": default_calib_8bit_fake_quant_qconfig, "module_name": outputs})


def accuracies(model: nn.Module) -> Accuracies:
    """Accuracy of each head on its own 397 held-out canvases; put the model in eval mode first."""
    held_out = (held_out_digits(), held_out_quadrants())
    return Accuracies(*(_accuracy(model, head, canvases) for head, canvases in enumerate(held_out)))


def evaluate(model: nn.Module) -> float:
    """The lower of the two accuracies, in percent: no head may fail."""
    return min(accuracies(model))


@torch.no_grad()
def _accuracy(model: nn.Module, head: int, canvases: Canvases, *, batch_size: int = 128) -> float:
    rows = torch.split(torch.arange(len(canvases)), batch_size)
    logits = torch.cat([model(canvases.images(part))[head] for part in rows])
    return 100.0 * float((logits.argmax(dim=1) == canvases.labels).sum()) / len(canvases)


def profile(out_dir: str | Path | None = None, **kwargs: Any) -> ProfileReport:
    """Calibrates all with the common set, then profiles on the quadrant task's canvases, where a head fails."""
    from profiler import model_profiler

    calib_model = calibrate(prepare(load()), calibration_batches())
    report: ProfileReport = model_profiler(
        calib_model, quadrant_batches(num_batches=6, batch_size=16), evaluate=evaluate, out_dir=out_dir, **kwargs
    )
    return report


def flow_sample() -> Sample:
    """What the flows need to know; they calibrate with the canvases of both tasks."""
    from sample_models.train_multitask import train_qat  # the trainer imports this module

    return Sample(
        name=NAME,
        metric="the lower of the two accuracies in percent, each on 397 held-out canvases",
        load=load,
        calibration_batches=lambda: digit_batches() + quadrant_batches(),
        evaluate=evaluate,
        train=train_qat,
        outputs=OUTPUTS,
        parts=("backbone", "digit_head", "quadrant_head"),
    )


if __name__ == "__main__":
    main(flow_sample(), qat_epochs=2)
