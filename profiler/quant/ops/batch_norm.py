"""BatchNorm that stands alone: a depthwise 1x1 product with int8 gain and int32 shift."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from profiler.quant.affine import along_axis
from profiler.quant.modules import QuantOp, quantized_output
from profiler.quant.ops.fold import batch_norm_affine
from profiler.quant.ops.gemm import FakeQuantGemm, Gemm, IntegerGemm, make_fake_quant
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import to_plain


class BatchNorm(QuantOp, nn.modules.batchnorm._BatchNorm):
    """Float batch norm of any rank: what a call of F.batch_norm with running statistics amounts to."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Every rank will do."""


class _ChannelProduct(Gemm):
    def gemm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x * weight[c] + bias[c]` along axis 1."""
        y = x * along_axis(weight, x.dim(), 1)
        return y if bias is None else y + along_axis(bias, x.dim(), 1)

    def out_axis(self, y: Tensor) -> int:
        """Always 1: `[N, C, ...]`."""
        return 1


class IntegerBatchNorm(_ChannelProduct, IntegerGemm):
    """BatchNorm on int8 codes."""

    base_name = "BatchNorm"

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, out={self.out_dtype}"


class FakeQuantBatchNorm(_ChannelProduct, FakeQuantGemm):
    """BatchNorm with fake-quantized gain and output.

    In training mode it normalises with the batch, updates its statistics, and quantizes the output only: the gain
    that integers will use does not exist yet.
    """

    base_name = "BatchNorm"
    integer_class = IntegerBatchNorm

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Gain and shift `[C]` from the running statistics, float32."""
        gain, shift = batch_norm_affine(self)
        return gain.float(), shift.float()

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Fake-quantized result as a QTensor."""
        if not self.training:
            self.follow_gain()
            return super().forward(x)
        return quantized_output(self.batch_norm(to_plain(x)), self.activation_post_process)

    @torch.no_grad()
    def follow_gain(self) -> None:
        """Set the weight scale from the gain: with one value per channel it needs no observing."""
        gain = self.weight_and_bias()[0]
        fake_quant = self.weight_fake_quant
        fake_quant.set_qparams(fake_quant.activation_post_process.scale_of(gain.abs()))

    def to_integer(self) -> IntegerGemm:
        """The integer form, with the scale of the present gain."""
        self.follow_gain()
        return super().to_integer()

    def batch_norm(self, x: Tensor) -> Tensor:
        """Torch's own batch norm, with its update of the running statistics."""
        raise NotImplementedError


class FakeQuantBatchNorm2d(FakeQuantBatchNorm, nn.BatchNorm2d):
    """BatchNorm2d form."""

    base_name = "BatchNorm2d"

    def batch_norm(self, x: Tensor) -> Tensor:
        """Train-mode batch norm."""
        return nn.BatchNorm2d.forward(self, x)


class FakeQuantBatchNorm1d(FakeQuantBatchNorm, nn.BatchNorm1d):
    """BatchNorm1d form."""

    base_name = "BatchNorm1d"

    def batch_norm(self, x: Tensor) -> Tensor:
        """Train-mode batch norm."""
        return nn.BatchNorm1d.forward(self, x)


class FakeQuantBatchNorm3d(FakeQuantBatchNorm, nn.BatchNorm3d):
    """BatchNorm3d form."""

    base_name = "BatchNorm3d"

    def batch_norm(self, x: Tensor) -> Tensor:
        """Train-mode batch norm."""
        return nn.BatchNorm3d.forward(self, x)


class FakeQuantBatchNormOfAnyRank(FakeQuantBatchNorm, BatchNorm):
    """Form of a called F.batch_norm."""

    def batch_norm(self, x: Tensor) -> Tensor:
        """Train-mode batch norm."""
        return BatchNorm.forward(self, x)


_FORMS: dict[type[nn.Module], type[FakeQuantBatchNorm]] = {
    nn.BatchNorm1d: FakeQuantBatchNorm1d,
    nn.BatchNorm2d: FakeQuantBatchNorm2d,
    nn.BatchNorm3d: FakeQuantBatchNorm3d,
    BatchNorm: FakeQuantBatchNormOfAnyRank,
}


def _batch_norm(module: nn.Module, qconfig: QConfig) -> nn.Module:
    if getattr(module, "running_mean", None) is None:
        return module
    form = next(form for cls, form in _FORMS.items() if isinstance(module, cls))
    new = make_fake_quant(form, module, qconfig)
    new.follow_gain()
    return new


BATCH_NORM = register(
    OpSpec("batch_norm", Family.GEMM, modules=tuple(_FORMS), fake_quant=_batch_norm,
           note="where it cannot be fused: int8 gain and int32 shift per channel; F.batch_norm with the model's own")
)  # fmt: skip
