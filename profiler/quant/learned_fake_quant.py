"""Fake quants whose scale is trained: LSQ and PACT."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from profiler.quant.affine import ABSMAX_FLOOR, QInfo, along_axis, fake_quantize
from profiler.quant.fake_quant import FakeQuantize


class _LearnableFakeQuantize(FakeQuantize):
    """LSQ: the scale is a parameter. The observer gives its first value; from then on QAT trains it.

    Args:
        use_grad_scaling: multiply the scale's gradient by 1 / sqrt(number of values * quant_max).

    Source:
        S. Esser et al., Learned Step Size Quantization, ICLR 2020, equations 2 and 3, section 2.2.
    """

    learns_rounding: ClassVar[bool] = True

    def __init__(self, *args: Any, use_grad_scaling: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.use_grad_scaling = use_grad_scaling
        first = self._buffers.pop("scale")
        assert first is not None
        self.register_parameter("scale", nn.Parameter(first))

    def __setattr__(self, name: str, value: Any) -> None:
        """A new scale goes into the parameter, which an optimizer may hold."""
        if name == "scale" and isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            old = self._parameters.get("scale")
            if old is not None and old.shape == value.shape and old.device == value.device:
                old.data.copy_(value.detach())
                return
            value = nn.Parameter(value.detach().clone())
        super().__setattr__(name, value)

    @property
    def tensor_scale(self) -> Tensor:
        """Scale as a QTensor carries it, without a gradient."""
        return super().tensor_scale.detach()

    def train(self, mode: bool = True) -> _LearnableFakeQuantize:
        """As usual; a step that took the scale below its floor is mended here too."""
        self._keep_positive()
        super().train(mode)
        return self

    def _keep_positive(self) -> None:
        floor = ABSMAX_FLOOR / self.info.half_range
        if bool((self.scale < floor).any()):
            self.scale.data.clamp_(min=floor)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize with a gradient to the scale while training; calibration and evaluation are as usual."""
        is_learning = self.training and self.is_rounding and torch.is_grad_enabled()
        if not is_learning or not self.is_calibrated or x.numel() == 0:
            return super().forward(x)
        self._keep_positive()
        per_scale = x.numel() / self.scale.numel()
        share = 1 / math.sqrt(per_scale * self.info.quant_max) if self.use_grad_scaling else 1.0
        result: Tensor = _Learned.apply(x, self.scale, self.info, self.ch_axis, share, self.learns_rounding)  # type: ignore[no-untyped-call]
        if self.journal is not None and result.requires_grad:
            self.journal.watch_backward(result)
        return result


class PACTFakeQuantize(_LearnableFakeQuantize):
    """PACT: the clipping bound is trained; only values beyond it give it a gradient.

    Source:
        J. Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018, equation 3, for a
        symmetric range.
    """

    learns_rounding = False


class _Learned(torch.autograd.Function):
    """fake_quantize whose backward also reaches the scale."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, info: QInfo, ch_axis: int, share: float, learns_rounding: bool
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.settings = (info, ch_axis, share, learns_rounding)
        return fake_quantize(x, scale, info, ch_axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        info, ch_axis, share, learns_rounding = ctx.settings
        steps = x * along_axis(1.0 / scale, x.dim(), ch_axis)
        codes = torch.round(steps)
        is_inside = (codes >= info.quant_min) & (codes <= info.quant_max)
        rounding = codes - steps if learns_rounding else torch.zeros_like(steps)
        by_scale = grad * torch.where(is_inside, rounding, codes.clamp(info.quant_min, info.quant_max))
        dims = [d for d in range(x.dim()) if d != ch_axis] if ch_axis >= 0 else list(range(x.dim()))
        scale_grad = (by_scale.sum(dim=dims) if dims else by_scale) * share
        return grad * is_inside, scale_grad.reshape(scale.shape), None, None, None, None
