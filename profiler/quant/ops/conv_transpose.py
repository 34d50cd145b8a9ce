"""ConvTranspose1d, 2d and 3d: the output channels lie on axis 1 of the weight, and inside each group of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.ops.gemm import FakeQuantGemm, FusedGemm, Gemm, IntegerGemm, make_fake_quant
from profiler.quant.ops.registry import Family, OpSpec, register

_FUNCTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class _ConvTranspose(Gemm):
    """The transposed convolution of every form.

    `output_size` belongs to one call, so it is kept for the length of that call only.
    """

    num_spatial = 2
    _requested_size: Any = None
    groups: int
    _output_padding: Any

    def forward(self, *args: Any, output_size: Any = None, **kwargs: Any) -> Tensor:
        """As the form's own forward; without a fused add the second argument is torch's `output_size`."""
        x, *rest = args
        if rest and not self.epilogue.has_add:
            output_size = rest.pop()
        self.__dict__["_requested_size"] = output_size
        try:
            result: Tensor = super().forward(x, *rest, **kwargs)
            return result
        finally:
            self.__dict__.pop("_requested_size")

    def gemm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Transposed convolution of plain tensors `[N, C, ...]` and `[C, C_out / groups, ...]`."""
        return _FUNCTIONS[self.num_spatial](
            x, weight, bias, self.stride, self.padding, self.padding_of_output(x), self.groups, self.dilation
        )

    def padding_of_output(self, x: Tensor) -> list[int]:
        """What is added at the far end of each spatial axis: the module's own, or what the call's size asks for."""
        sizes = (self.stride, self.padding, self.kernel_size, self.num_spatial, self.dilation)
        padding: list[int] = self._output_padding(x, self._requested_size, *sizes)
        return padding

    def out_axis(self, y: Tensor) -> int:
        """1 for `[N, C, ...]`, 0 for an unbatched `[C, ...]`."""
        return y.dim() - self.num_spatial - 1

    def rows(self, weight: Tensor) -> Tensor:
        """`[C, C_out / groups, ...]` as `[C_out, C / groups, ...]`."""
        return _swap_channels(weight, self.groups)

    def from_rows(self, rows: Tensor) -> Tensor:
        """`[C_out, C / groups, ...]` as `[C, C_out / groups, ...]`."""
        return _swap_channels(rows, self.groups)

    def weight_axis(self) -> int:
        """1; with groups an entry of axis 1 is one output channel of each group, so the weight gets one scale."""
        return 1 if self.groups == 1 else -1


def _swap_channels(weight: Tensor, groups: int) -> Tensor:
    """`[groups * i, o, ...]` to `[groups * o, i, ...]`; its own inverse."""
    first, second = weight.shape[:2]
    grouped = weight.reshape(groups, first // groups, second, *weight.shape[2:])
    return grouped.transpose(1, 2).reshape(groups * second, first // groups, *weight.shape[2:])


class FusedConvTranspose1d(_ConvTranspose, FusedGemm, nn.ConvTranspose1d):
    """ConvTranspose1d with folded batch norm, add and activation."""

    base_name, num_spatial = "ConvTranspose1d", 1


class IntegerConvTranspose1d(_ConvTranspose, IntegerGemm, nn.ConvTranspose1d):
    """ConvTranspose1d on int8 codes."""

    base_name, num_spatial = "ConvTranspose1d", 1


class FakeQuantConvTranspose1d(_ConvTranspose, FakeQuantGemm, nn.ConvTranspose1d):
    """ConvTranspose1d with fake-quantized weight and output."""

    base_name, num_spatial = "ConvTranspose1d", 1
    integer_class = IntegerConvTranspose1d


class FusedConvTranspose2d(_ConvTranspose, FusedGemm, nn.ConvTranspose2d):
    """ConvTranspose2d with folded batch norm, add and activation."""

    base_name = "ConvTranspose2d"


class IntegerConvTranspose2d(_ConvTranspose, IntegerGemm, nn.ConvTranspose2d):
    """ConvTranspose2d on int8 codes."""

    base_name = "ConvTranspose2d"


class FakeQuantConvTranspose2d(_ConvTranspose, FakeQuantGemm, nn.ConvTranspose2d):
    """ConvTranspose2d with fake-quantized weight and output."""

    base_name = "ConvTranspose2d"
    integer_class = IntegerConvTranspose2d


class FusedConvTranspose3d(_ConvTranspose, FusedGemm, nn.ConvTranspose3d):
    """ConvTranspose3d with folded batch norm, add and activation."""

    base_name, num_spatial = "ConvTranspose3d", 3


class IntegerConvTranspose3d(_ConvTranspose, IntegerGemm, nn.ConvTranspose3d):
    """ConvTranspose3d on int8 codes."""

    base_name, num_spatial = "ConvTranspose3d", 3


class FakeQuantConvTranspose3d(_ConvTranspose, FakeQuantGemm, nn.ConvTranspose3d):
    """ConvTranspose3d with fake-quantized weight and output."""

    base_name, num_spatial = "ConvTranspose3d", 3
    integer_class = IntegerConvTranspose3d


CONV_TRANSPOSE1D = register(
    OpSpec("conv_transpose1d", Family.GEMM, modules=(nn.ConvTranspose1d, FusedConvTranspose1d),
           fake_quant=partial(make_fake_quant, FakeQuantConvTranspose1d),
           fused=FusedConvTranspose1d, norms=(nn.BatchNorm1d, nn.SyncBatchNorm),
           note="weight scales along axis 1, one scale where grouped; output_size; fuses BatchNorm1d")
)  # fmt: skip
CONV_TRANSPOSE2D = register(
    OpSpec("conv_transpose2d", Family.GEMM, modules=(nn.ConvTranspose2d, FusedConvTranspose2d),
           fake_quant=partial(make_fake_quant, FakeQuantConvTranspose2d),
           fused=FusedConvTranspose2d, norms=(nn.BatchNorm2d, nn.SyncBatchNorm),
           note="as conv_transpose1d; fuses BatchNorm2d, add, ReLU, ReLU6")
)  # fmt: skip
CONV_TRANSPOSE3D = register(
    OpSpec("conv_transpose3d", Family.GEMM, modules=(nn.ConvTranspose3d, FusedConvTranspose3d),
           fake_quant=partial(make_fake_quant, FakeQuantConvTranspose3d),
           fused=FusedConvTranspose3d, norms=(nn.BatchNorm3d, nn.SyncBatchNorm),
           note="as conv_transpose1d; fuses BatchNorm3d")
)  # fmt: skip
