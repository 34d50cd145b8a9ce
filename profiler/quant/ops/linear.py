"""Linear."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.integer_kernels import Geometry
from profiler.quant.ops.gemm import FakeQuantGemm, FusedGemm, Gemm, IntegerGemm, make_fake_quant
from profiler.quant.ops.registry import Family, OpSpec, register


class _Linear(Gemm):
    base_name = "Linear"

    def gemm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Matrix product of plain tensors `[..., in]` and `[out, in]`."""
        return F.linear(x, weight, bias)

    def out_axis(self, y: Tensor) -> int:
        """The last axis."""
        return y.dim() - 1

    def geometry(self) -> Geometry:
        """A 1x1 convolution of one image whose width is the rows."""
        return Geometry()

    def as_image(self, x: Tensor) -> Tensor:
        """`[..., C]` as `[1, C, 1, rows]`."""
        return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)

    def from_image(self, y: Tensor, x: Tensor) -> Tensor:
        """`[1, C, 1, rows]` as `[..., C]`."""
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], y.shape[1])


class FusedLinear(_Linear, FusedGemm, nn.Linear):
    """Linear with folded batch norm, add and activation."""


class IntegerLinear(_Linear, IntegerGemm, nn.Linear):
    """Linear on int8 codes."""


class FakeQuantLinear(_Linear, FakeQuantGemm, nn.Linear):
    """Linear with fake-quantized weight and output."""

    integer_class = IntegerLinear


LINEAR = register(
    OpSpec("linear", Family.GEMM, modules=(nn.Linear, FusedLinear),
           fake_quant=partial(make_fake_quant, FakeQuantLinear),
           fused=FusedLinear, norms=(nn.BatchNorm1d, nn.SyncBatchNorm),
           note="any leading dimensions; fuses BatchNorm1d, add, ReLU, ReLU6")
)  # fmt: skip
