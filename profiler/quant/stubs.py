"""QuantStub and DeQuantStub: where float becomes quantized and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, UnsupportedOpError
from profiler.quant.affine import QInfo, quantize
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.masks import (
    OFF_BEFORE_SOFTMAX,
    far_below,
    has_far_entries,
    is_additive_mask,
    is_mask_scale,
    switched_off,
)
from profiler.quant.modules import QuantOp, adopt, place_like, quantized_output
from profiler.quant.observers import FixedScaleObserver
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, to_float


class QuantStub(QuantOp):
    """Float to quantized. In a float model it passes its input on.

    Args:
        scale: fixed scale (camera input normalised by 128: 1 / 128); None: from statistics.
        zero_point: None or 0.
        qconfig: qconfig of this stub; inherited if None.

    Raises:
        ConfigError: scale is not positive, or zero_point is not 0.
    """

    is_automatic = False  # put in by a front end, which cannot tell a mask or a number from float values
    feeds_softmax = False  # only sums that a softmax reads: entries far below the others are switched off

    def __init__(
        self, scale: float | None = None, zero_point: int | None = None, qconfig: QConfig | None = None
    ) -> None:
        super().__init__()
        if (scale is not None and scale <= 0) or zero_point:
            raise ConfigError(f"QuantStub(scale={scale}, zero_point={zero_point}): expected scale > 0, zero_point 0")
        self.scale = scale
        if qconfig is not None:
            self.qconfig = qconfig

    @staticmethod
    def automatic() -> QuantStub:
        """One that a front end puts in."""
        stub = QuantStub()
        stub.is_automatic = True
        return stub

    def forward(self, x: Tensor) -> Tensor:
        """The input itself."""
        return x

    def extra_repr(self) -> str:
        return "" if self.scale is None else f"scale={self.scale}"


class DeQuantStub(QuantOp):
    """Quantized to float, in every stage; a float tensor passes as it is, a nest of tensors tensor by tensor."""

    is_automatic = False  # put in by a front end before ops that run in float, and at outputs

    def forward(self, x: Any) -> Any:
        """Real values as a plain tensor."""
        return x.dequantize() if isinstance(x, QTensor) else x if isinstance(x, Tensor) else to_float(x)


class FakeQuantStub(QuantStub):
    """QuantStub that fake-quantizes."""

    activation_post_process: FakeQuantize
    has_mask: Tensor

    def forward(self, x: Any) -> Any:
        """Fake-quantized input as a QTensor; a quantized one passes and gives the stub its scale.

        That is a stub at a cut: the part behind it, deployed alone, reads the codes that the part before it writes.
        """
        if isinstance(x, QTensor):
            self._take_scale_of(x)
            if self.is_automatic and not self.activation_post_process.is_calibrated:  # it only passes values on
                self.ran_in_float = True
            return x
        if self.is_automatic and not (isinstance(x, Tensor) and x.is_floating_point()):
            self.ran_in_float = True  # its scale is not missed
            return x
        if not x.is_floating_point():
            raise UnsupportedOpError(f"a QuantStub got {x.dtype}; only float tensors are quantized, remove this stub")
        return self._with_mask(x) if self.feeds_softmax else quantized_output(x, self.activation_post_process)

    def _with_mask(self, x: Tensor) -> Tensor:
        """A tensor that may hold a mask, alone or with other numbers, as softmax will see it."""
        fake_quant = self.activation_post_process
        if fake_quant.is_observer_on and has_far_entries(x.detach()):
            self.has_mask.fill_(True)
        if not self.has_mask:
            return quantized_output(x, fake_quant)
        off = x <= OFF_BEFORE_SOFTMAX
        if is_mask_scale(fake_quant.scale) or is_additive_mask(far_below(x.detach(), off)):
            return quantized_output(far_below(x, off), fake_quant)
        result = quantized_output(torch.where(off, 0.0, x), fake_quant)
        if not isinstance(result, QTensor):
            return x
        return switched_off(result if result.is_rounded else result.like(x), off)

    def _take_scale_of(self, x: QTensor) -> None:
        fake_quant = self.activation_post_process
        is_observing = fake_quant.is_observer_on and fake_quant.training
        if is_observing and self.scale is None and x.ch_axis < 0 and x.qdtype == fake_quant.dtype:
            fake_quant.set_qparams(x.scale.detach())

    def to_integer(self) -> IntegerQuantStub:
        """The integer form."""
        module = adopt(IntegerQuantStub, self)
        module._modules.pop("activation_post_process")
        module.register_buffer("out_scale", self.activation_post_process.tensor_scale.detach().clone())
        module.out_info = self.activation_post_process.info
        module.takes_mask = self.feeds_softmax and bool(module._buffers.pop("has_mask"))
        return module

    def _get_name(self) -> str:
        return "QuantStub"


class IntegerQuantStub(QuantStub):
    """QuantStub that writes integer codes."""

    out_scale: Tensor
    out_info: QInfo
    takes_mask = False

    @property
    def out_dtype(self) -> str:
        """Name of the codes' dtype."""
        return self.out_info.name

    def forward(self, x: Any) -> Any:
        """Codes of the input."""
        if isinstance(x, QTensor) or (self.is_automatic and not (isinstance(x, Tensor) and x.is_floating_point())):
            return x
        if not self.takes_mask:
            return QTensor.wrap(quantize(x, self.out_scale, self.out_info), self.out_scale, self.out_dtype)
        off, is_mask = x <= OFF_BEFORE_SOFTMAX, is_mask_scale(self.out_scale)
        kept = far_below(x, off) if is_mask else torch.where(off, 0.0, x)
        result = QTensor.wrap(quantize(kept, self.out_scale, self.out_info), self.out_scale, self.out_dtype)
        return result if is_mask else switched_off(result, off)

    def extra_repr(self) -> str:
        return f"scale={float(self.out_scale):.8g}, dtype={self.out_dtype}"

    def _get_name(self) -> str:
        return "QuantStub"


def _make_quant_stub(module: Any, qconfig: QConfig) -> nn.Module:
    if qconfig.activation is None:
        return QuantStub() if not isinstance(module, QuantStub) else module
    scale = getattr(module, "scale", None)
    stub = adopt(FakeQuantStub, module if isinstance(module, QuantStub) else QuantStub())
    factory = qconfig.activation
    if scale is not None:
        dtype = qconfig.activation_dtype
        factory = FakeQuantize.with_args(observer=FixedScaleObserver, scale=scale, dtype=dtype)
    stub.activation_post_process = place_like(factory(), module)
    if stub.feeds_softmax:
        stub.register_buffer(
            "has_mask", torch.zeros((), dtype=torch.bool, device=stub.activation_post_process.scale.device)
        )
    return stub


def _make_dequant_stub(module: Any, qconfig: QConfig) -> nn.Module:
    return module if isinstance(module, DeQuantStub) else DeQuantStub()


QUANT_STUB = register(
    OpSpec("quant_stub", Family.STUB, modules=(QuantStub,), fake_quant=_make_quant_stub, note="float -> int8 or int16")
)
DEQUANT_STUB = register(
    OpSpec(
        "dequant_stub", Family.STUB, modules=(DeQuantStub,), fake_quant=_make_dequant_stub, note="integers -> float32"
    )
)
