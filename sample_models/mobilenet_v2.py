"""A healthy sample: MobileNetV2 in the style of detection libraries, cut down for 32x32 digits.

Every ConvModule is conv + bn + ReLU6 (or conv + bn), the residual add is a `FloatFunctional`, and the input is
camera-like: whole multiples of 1/128 around 0, so `QuantStub` has the fixed scale 1/128. The weights in `weights/` are
made by `python -m sample_models.train_mobilenet_v2`; `python -m sample_models.mobilenet_v2 --flow eager` (or fx) prints
the accuracy of every stage from float to the ONNX file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from profiler.quant import DeQuantStub, FloatFunctional, QuantStub, fuse_known_modules, fuse_modules
from sample_models import digits
from sample_models.conv_module import ConvModule
from sample_models.flows import Sample, main
from sample_models.training import load_weights

if TYPE_CHECKING:
    from profiler import ProfileReport

NAME = "mobilenet_v2"


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation, and the input added where shapes allow it."""

    def __init__(self, cin: int, cout: int, stride: int, expand_ratio: int) -> None:
        super().__init__()
        mid = cin * expand_ratio
        self.with_expand, self.with_residual = expand_ratio != 1, stride == 1 and cin == cout
        if self.with_expand:
            self.expand = ConvModule(cin, mid, 1)
        self.depthwise = ConvModule(mid, mid, 3, stride, groups=mid)
        self.project = ConvModule(mid, cout, 1, act=None)
        if self.with_residual:
            self.skip_add = FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.expand(x) if self.with_expand else x
        out = self.project(self.depthwise(out))
        if self.with_residual:
            out = self.skip_add.add(out, x)
        return out

    def fuse_modules(self) -> None:
        """Each ConvModule by itself; with a residual, the projection and the add become one module as well."""
        if self.with_expand:
            self.expand.fuse_modules()
        self.depthwise.fuse_modules()
        if self.with_residual:
            names = ["project.conv", "project.bn", "skip_add"]
            fuse_modules(self, names, inplace=True, fuser_func=fuse_known_modules)
        else:
            self.project.fuse_modules()


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that keeps at least 90 % of the channels."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class MobileNetV2(nn.Module):
    """The backbone. It gives the outputs of the stages in `out_indices` as a tuple, still quantized.

    Args:
        widen_factor: multiplies every channel count.
        out_indices: stages to give; the last stage is the 1x1 convolution `conv2`, where there is one.
    """

    # expand ratio, channels, blocks, stride: the paper's table, cut in depth for 32x32 images
    arch_settings: tuple[tuple[int, int, int, int], ...] = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 1))
    stem_channels, last_channels = 32, 256  # no last convolution: 0

    def __init__(self, widen_factor: float = 1.0, out_indices: tuple[int, ...] = (4,)) -> None:
        super().__init__()
        self.out_indices = out_indices
        channels = make_divisible(self.stem_channels * widen_factor)
        self.quant = QuantStub(scale=1 / 128)
        self.conv1 = ConvModule(1, channels, 3, stride=2)
        self.layers: list[str] = []
        for number, (expand_ratio, base, num_blocks, stride) in enumerate(self.arch_settings, start=1):
            cout = make_divisible(base * widen_factor)
            strides = [stride] + [1] * (num_blocks - 1)
            blocks = [
                InvertedResidual(channels if i == 0 else cout, cout, s, expand_ratio) for i, s in enumerate(strides)
            ]
            self._add_stage(f"layer{number}", nn.Sequential(*blocks))
            channels = cout
        self.out_channels = make_divisible(self.last_channels * widen_factor)
        if self.last_channels:
            self._add_stage("conv2", ConvModule(channels, self.out_channels, 1))

    def _add_stage(self, name: str, stage: nn.Module) -> None:
        self.add_module(name, stage)
        self.layers.append(name)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.conv1(self.quant(x))
        outs = []
        for i, name in enumerate(self.layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def fuse_modules(self) -> None:
        """Fuses the stem, every block and the last convolution."""
        self.conv1.fuse_modules()
        for name in self.layers:
            stage = getattr(self, name)
            blocks: list[Any] = list(stage) if isinstance(stage, nn.Sequential) else [stage]
            for block in blocks:
                block.fuse_modules()


class ClassifierHead(nn.Module):
    """Global average pool, one linear layer, logits in float."""

    def __init__(self, channels: int, num_classes: int = digits.NUM_CLASSES) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.dequant = DeQuantStub()

    def forward(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x = self.pool(features[-1]).flatten(1)
        logits: torch.Tensor = self.dequant(self.fc(x))
        return logits


class Classifier(nn.Module):
    """Backbone and head: camera-like images `[N, 1, 32, 32]` to logits `[N, 10]`."""

    def __init__(self, widen_factor: float = 0.5) -> None:
        super().__init__()
        self.backbone = MobileNetV2(widen_factor)
        self.head = ClassifierHead(self.backbone.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(x))
        return logits

    def fuse_modules(self) -> None:
        """What the eager flow calls before `prepare_qat`."""
        self.backbone.fuse_modules()


def build() -> nn.Module:
    """The network with fresh weights, in train mode."""
    return Classifier()


def load() -> nn.Module:
    """The trained network in eval mode."""
    return load_weights(build(), NAME)


def calibration_batches() -> list[torch.Tensor]:
    """Ten batches of 32 training images, normalised."""
    return digits.calibration_batches()


def evaluate(model: nn.Module) -> float:
    """Accuracy in percent on the 397 held-out images."""
    return digits.accuracy(model)


def profile(out_dir: str | Path | None = None, **kwargs: Any) -> ProfileReport:
    """Profiles the trained network from float to int8, as a user would."""
    from profiler import model_profiler

    report: ProfileReport = model_profiler(load(), calibration_batches(), evaluate=evaluate, out_dir=out_dir, **kwargs)
    return report


def flow_sample() -> Sample:
    """What the flows need to know of the classifier."""
    from sample_models.train_mobilenet_v2 import train_qat  # the trainer imports this module

    return Sample(
        name=NAME,
        metric=f"accuracy in percent on {digits.NUM_TEST} held-out images",
        load=load,
        calibration_batches=calibration_batches,
        evaluate=evaluate,
        train=train_qat,
        outputs=("head.fc",),
        parts=("backbone",),
    )


if __name__ == "__main__":
    main(flow_sample(), qat_epochs=3)
