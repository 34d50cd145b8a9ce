"""Conv1d and Conv2d: plain, grouped and depthwise."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from profiler.quant.ops.gemm import FakeQuantGemm, FusedGemm, Gemm, IntegerGemm, make_fake_quant
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qconfig import QConfig


class Conv(Gemm):
    """The convolution of every form; `_conv_forward` also pads for the non-zero padding modes."""

    num_spatial = 2
    _conv_forward: Any

    def gemm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolution of plain tensors."""
        y: Tensor = self._conv_forward(x, weight, bias)
        return y

    def out_axis(self, y: Tensor) -> int:
        """1 for `[N, C, ...]`, 0 for an unbatched `[C, ...]`."""
        return y.dim() - self.num_spatial - 1


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


def _conv2d(module: nn.Module, qconfig: QConfig) -> nn.Module:
    return make_fake_quant(FakeQuantConv2d, module, qconfig)


def _conv1d(module: nn.Module, qconfig: QConfig) -> nn.Module:
    return make_fake_quant(FakeQuantConv1d, module, qconfig)


CONV2D = register(
    OpSpec("conv", Family.GEMM, modules=(nn.Conv2d, FusedConv2d), fake_quant=_conv2d,
           fused=FusedConv2d, norms=(nn.BatchNorm2d, nn.SyncBatchNorm),
           note="plain, grouped, depthwise; all padding modes; fuses BatchNorm2d, add, ReLU, ReLU6")
)  # fmt: skip
CONV1D = register(
    OpSpec("conv1d", Family.GEMM, modules=(nn.Conv1d, FusedConv1d), fake_quant=_conv1d,
           fused=FusedConv1d, norms=(nn.BatchNorm1d, nn.SyncBatchNorm),
           note="as conv; fuses BatchNorm1d")
)  # fmt: skip
