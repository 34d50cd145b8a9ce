"""Convolution with optional norm and activation: the block that both samples are made of."""

from __future__ import annotations

import torch
from torch import nn

from profiler.quant import fuse_known_modules, fuse_modules

Size = int | tuple[int, int]


class ConvModule(nn.Module):
    """conv (+ norm) (+ activation), each under the attribute name that `fuse_modules` needs.

    Args:
        cin: input channels.
        cout: output channels.
        kernel: kernel size.
        stride: stride.
        padding: zero padding; None keeps the size at stride 1.
        groups: groups of the convolution.
        norm: whether a BatchNorm2d follows; the convolution has no bias in either case.
        act: activation class, or None.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: Size,
        stride: Size = 1,
        *,
        padding: Size | None = None,
        groups: int = 1,
        norm: bool = True,
        act: type[nn.Module] | None = nn.ReLU6,
    ) -> None:
        super().__init__()
        self.norm_name, self.with_norm, self.with_activation = "bn", norm, act is not None
        self.conv = nn.Conv2d(
            cin, cout, kernel, stride, _same(kernel) if padding is None else padding, groups=groups, bias=False
        )
        if norm:
            self.bn = nn.BatchNorm2d(cout)
        if act is not None:
            self.activate = act(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.with_norm:
            x = getattr(self, self.norm_name)(x)
        if self.with_activation:
            x = self.activate(x)
        return x

    def fuse_modules(self) -> None:
        """Conv (+ norm) (+ activation) become one module; the others stay as Identity."""
        names = ["conv"] + [self.norm_name] * self.with_norm + ["activate"] * self.with_activation
        if len(names) > 1:
            fuse_modules(self, names, inplace=True, fuser_func=fuse_known_modules)


def _same(kernel: Size) -> Size:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
