"""Conv1d and Conv2d: plain, grouped and depthwise."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from profiler.quant.integer_kernels import Geometry
from profiler.quant.ops.gemm import FakeQuantGemm, FusedGemm, Gemm, IntegerGemm, make_fake_quant
from profiler.quant.ops.registry import Family, OpSpec, register


class Conv(Gemm):
    """The convolution of every form; `_conv_forward` also pads for the non-zero padding modes."""

    num_spatial = 2
    _conv_forward: Any
    stride: Any
    padding: Any
    dilation: Any
    kernel_size: Any
    groups: int
    padding_mode: Any

    def gemm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolution of plain tensors."""
        y: Tensor = self._conv_forward(x, weight, bias)
        return y

    def out_axis(self, y: Tensor) -> int:
        """1 for `[N, C, ...]`, 0 for an unbatched `[C, ...]`."""
        return y.dim() - self.num_spatial - 1

    def geometry(self) -> Geometry | None:
        """As a 2-d convolution; None for 3-d, and where the padding is not as many zeros on both sides."""
        if self.num_spatial > 2 or self.padding_mode != "zeros":
            return None
        padding = self.padding
        if isinstance(padding, str):
            totals = [
                0 if padding == "valid" else d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)
            ]
            if any(total % 2 for total in totals):
                return None
            padding = tuple(total // 2 for total in totals)
        missing = 2 - self.num_spatial
        return Geometry(
            (1,) * missing + self.stride, (0,) * missing + padding, (1,) * missing + self.dilation, self.groups
        )

    def as_image(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` of a batch or a single sample; a row of pixels for 1-d."""
        x = x if x.dim() == self.num_spatial + 2 else x.unsqueeze(0)
        return x if self.num_spatial == 2 else x.unsqueeze(2)

    def from_image(self, y: Tensor, x: Tensor) -> Tensor:
        """The inverse for an output of input x."""
        y = y if self.num_spatial == 2 else y.squeeze(2)
        return y if x.dim() == self.num_spatial + 2 else y.squeeze(0)


class FusedConv2d(Conv, FusedGemm, nn.Conv2d):
    """Conv2d with folded batch norm, add and activation."""

    base_name = "Conv2d"


class IntegerConv2d(Conv, IntegerGemm, nn.Conv2d):
    """Conv2d on int8 codes."""

    base_name = "Conv2d"


class FakeQuantConv2d(Conv, FakeQuantGemm, nn.Conv2d):
    """Conv2d with fake-quantized weight and output."""

    base_name = "Conv2d"
    integer_class = IntegerConv2d


class FusedConv1d(Conv, FusedGemm, nn.Conv1d):
    """Conv1d with folded batch norm, add and activation."""

    base_name, num_spatial = "Conv1d", 1


class IntegerConv1d(Conv, IntegerGemm, nn.Conv1d):
    """Conv1d on int8 codes."""

    base_name, num_spatial = "Conv1d", 1


class FakeQuantConv1d(Conv, FakeQuantGemm, nn.Conv1d):
    """Conv1d with fake-quantized weight and output."""

    base_name, num_spatial = "Conv1d", 1
    integer_class = IntegerConv1d


CONV2D = register(
    OpSpec("conv", Family.GEMM, modules=(nn.Conv2d, FusedConv2d),
           fake_quant=partial(make_fake_quant, FakeQuantConv2d),
           fused=FusedConv2d, norms=(nn.BatchNorm2d, nn.SyncBatchNorm),
           note="plain, grouped, depthwise; all padding modes; fuses BatchNorm2d, add, ReLU, ReLU6")
)  # fmt: skip
CONV1D = register(
    OpSpec("conv1d", Family.GEMM, modules=(nn.Conv1d, FusedConv1d),
           fake_quant=partial(make_fake_quant, FakeQuantConv1d),
           fused=FusedConv1d, norms=(nn.BatchNorm1d, nn.SyncBatchNorm),
           note="as conv; fuses BatchNorm1d")
)  # fmt: skip
