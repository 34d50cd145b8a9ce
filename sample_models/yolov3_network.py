"""The detector's network: MobileNetV2 backbone, YOLOv3 neck and head, as a detection library writes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import DeQuantStub, FloatFunctional
from sample_models.conv_module import ConvModule
from sample_models.mobilenet_v2 import MobileNetV2, make_divisible
from sample_models.yolov3_boxes import ANCHORS, NUM_ATTRIBUTES, STRIDES, find_places, flatten_maps
from sample_models.yolov3_loss import SigmoidLoss, SquaredLoss, assign

Maps = tuple[torch.Tensor, ...]


class Backbone(MobileNetV2):
    """MobileNetV2 without its last convolution; gives the features of strides 8, 16 and 32."""

    arch_settings = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 3, 2), (6, 96, 2, 1), (6, 160, 2, 2))
    last_channels = 0

    def __init__(self, widen_factor: float = 0.5) -> None:
        super().__init__(widen_factor, out_indices=(2, 4, 5))
        self.level_channels = [make_divisible(self.arch_settings[i][1] * widen_factor) for i in self.out_indices]


class DetectionBlock(nn.Module):
    """Five convolutions, 1x1 and 3x3 in turn."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv1 = ConvModule(cin, cout, 1)
        self.conv2 = ConvModule(cout, 2 * cout, 3)
        self.conv3 = ConvModule(2 * cout, cout, 1)
        self.conv4 = ConvModule(cout, 2 * cout, 3)
        self.conv5 = ConvModule(2 * cout, cout, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.conv1(x)))
        out: torch.Tensor = self.conv5(self.conv4(x))
        return out

    def fuse_modules(self) -> None:
        """Each convolution with its norm and activation."""
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            conv.fuse_modules()


class YOLOV3Neck(nn.Module):
    """Top-down path: each coarser level goes through a 1x1, is enlarged, and joins the next finer level.

    Args:
        in_channels: channels of the backbone's levels, fine to coarse.
        out_channels: channels of every output level.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        coarse, *finer = list(in_channels)[::-1]
        self.detect1 = DetectionBlock(coarse, out_channels)
        self.num_joins = len(finer)
        for i, channels in enumerate(finer, start=1):
            self.add_module(f"conv{i}", ConvModule(out_channels, out_channels // 2, 1))
            self.add_module(f"detect{i + 1}", DetectionBlock(channels + out_channels // 2, out_channels))
        self.cats = nn.ModuleList(FloatFunctional() for _ in finer)  # one per call site

    def forward(self, features: Maps) -> Maps:
        """Features of strides 8, 16, 32 to levels of strides 32, 16, 8."""
        out = self.detect1(features[-1])
        outs = [out]
        for i in range(self.num_joins):
            top = F.interpolate(getattr(self, f"conv{i + 1}")(out), scale_factor=2.0, mode="nearest")
            joined = self.cats[i].cat((top, features[-2 - i]), dim=1)  # type: ignore[operator]
            out = getattr(self, f"detect{i + 2}")(joined)
            outs.append(out)
        return tuple(outs)

    def fuse_modules(self) -> None:
        """Each block, and each 1x1 of the top-down path."""
        for name, module in self.named_children():
            if name.startswith(("conv", "detect")):
                module.fuse_modules()  # type: ignore[operator]


class YOLOV3Head(nn.Module):
    """One 3x3 and one 1x1 convolution per level; the maps leave in float.

    Args:
        channels: channels of every level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs_bridge = nn.ModuleList(ConvModule(channels, channels, 3) for _ in STRIDES)
        self.convs_pred = nn.ModuleList(nn.Conv2d(channels, len(anchors) * NUM_ATTRIBUTES, 1) for anchors in ANCHORS)
        self.dequant = nn.ModuleList(DeQuantStub() for _ in STRIDES)
        self.loss_cls, self.loss_conf = SigmoidLoss(4.0), SigmoidLoss()
        self.loss_xy, self.loss_wh = SigmoidLoss(), SquaredLoss(2.0)

    def forward(self, levels: Maps) -> Maps:
        """Prediction maps `[N, 3 * 15, H, W]`, strides 32, 16, 8."""
        maps = []
        for i, x in enumerate(levels):
            bridge = self.convs_bridge[i](x)
            maps.append(self.dequant[i](self.convs_pred[i](bridge)))
        return tuple(maps)

    def loss(self, maps: Maps, boxes: list[torch.Tensor], labels: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The four losses of a batch by name, each a scalar per canvas.

        Args:
            maps: what `forward` gave.
            boxes: per canvas `[M, 4]` in pixels.
            labels: per canvas `[M]`.
        """
        canvas_size = STRIDES[0] * maps[0].shape[-1]
        rows = flatten_maps(maps)
        t = assign(boxes, labels, find_places(canvas_size), canvas_size)
        answers = rows[t.canvas, t.place]
        losses = {
            "loss_cls": self.loss_cls(answers[:, 5:], t.classes, torch.ones_like(t.weight)),
            "loss_conf": self.loss_conf(rows[..., 4], t.confidence, t.counts),
            "loss_xy": self.loss_xy(answers[:, :2], t.center, t.weight),
            "loss_wh": self.loss_wh(answers[:, 2:4], t.size, t.weight),
        }
        return {name: value / len(boxes) for name, value in losses.items()}

    def fuse_modules(self) -> None:
        """The 3x3 convolutions; the 1x1 ones have nothing to fuse with."""
        for bridge in self.convs_bridge:
            bridge.fuse_modules()  # type: ignore[operator]


class YOLOV3(nn.Module):
    """Backbone, neck and head: camera-like images `[N, 1, 96, 96]` to three prediction maps.

    Args:
        widen_factor: width of the backbone.
        neck_channels: channels of the neck's levels.
    """

    def __init__(self, widen_factor: float = 0.5, neck_channels: int = 48) -> None:
        super().__init__()
        self.backbone = Backbone(widen_factor)
        self.neck = YOLOV3Neck(self.backbone.level_channels, neck_channels)
        self.bbox_head = YOLOV3Head(neck_channels)
        for conv in self.bbox_head.convs_pred:
            start_quiet(conv)

    def forward(self, x: torch.Tensor) -> Maps:
        maps: Maps = self.bbox_head(self.neck(self.backbone(x)))
        return maps


def start_quiet(conv: nn.Module) -> None:
    """A fresh prediction layer says "nothing here": most places hold no object, and training starts calmer."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=0.01)
    with torch.no_grad():
        conv.bias.zero_()
        conv.bias.view(-1, NUM_ATTRIBUTES)[:, 4] = -4.0
