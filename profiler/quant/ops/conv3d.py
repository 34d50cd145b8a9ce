"""Conv3d: plain, grouped and depthwise."""

from __future__ import annotations

from functools import partial

from torch import nn

from profiler.quant.ops.conv import Conv
from profiler.quant.ops.gemm import FakeQuantGemm, FusedGemm, IntegerGemm, make_fake_quant
from profiler.quant.ops.registry import Family, OpSpec, register


class FusedConv3d(Conv, FusedGemm, nn.Conv3d):
    """Conv3d with folded batch norm, add and activation."""

    base_name, num_spatial = "Conv3d", 3


class IntegerConv3d(Conv, IntegerGemm, nn.Conv3d):
    """Conv3d on int8 codes."""

    base_name, num_spatial = "Conv3d", 3


class FakeQuantConv3d(Conv, FakeQuantGemm, nn.Conv3d):
    """Conv3d with fake-quantized weight and output."""

    base_name, num_spatial = "Conv3d", 3
    integer_class = IntegerConv3d


CONV3D = register(
    OpSpec("conv3d", Family.GEMM, modules=(nn.Conv3d, FusedConv3d),
           fake_quant=partial(make_fake_quant, FakeQuantConv3d),
           fused=FusedConv3d, norms=(nn.BatchNorm3d, nn.SyncBatchNorm),
           note="as conv; fuses BatchNorm3d")
)  # fmt: skip
