"""FakeQuantize: rounds to codes and back in float, with an observer that finds the scale."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError, NotCalibratedError, StateError
from profiler.quant.affine import QInfo, fake_quantize, round_to_grid
from profiler.quant.blocks import is_plain_eager
from profiler.quant.journal import Journal
from profiler.quant.observers import MovingAverageMinMaxObserver, ObserverBase
from profiler.quant.policy import complain
from profiler.quant.switches import GlobalFakeQuantSwitch

_MISTAKE_3 = (
    "{name}: observing is on and fake quant is off (CALIBRATION), but the module is in eval, so nothing is observed "
    "and nothing is rounded; to evaluate, call set_fake_quantize(model, FakeQuantState.VALIDATION) after "
    "model.eval(); to calibrate, call model.eval() first and set_fake_quantize(model, FakeQuantState.CALIBRATION) "
    "after it"
)
_MISTAKE_2 = (
    "{name}: fake quant is on, but no scale is known and none can be observed; call model.eval(), "
    "set_fake_quantize(model, FakeQuantState.CALIBRATION), run some batches, then model.eval() and VALIDATION"
)
FROZEN_ATTRIBUTE = "frozen_part"


class FakeQuantize(nn.Module):
    """Simulates quantization of one tensor.

    An observer updates only while this module is in training mode. `scale` is 1 until something was observed or given;
    `is_calibrated` tells the difference.

    Args:
        observer: observer class or factory.
        saturate: None or True: gradient 0 outside the range; False is not supported.
        in_place: False; results are never written over the input.
        compat_mask: accepted; torch's kernels keep their own mask.
        channel_len: more than 1 starts with that many scales (per channel).
        observer_kwargs: arguments of the observer.

    Raises:
        ConfigError: an argument cannot be used.
    """

    scale: Tensor
    zero_point: Tensor
    fake_quant_enabled: Tensor
    observer_enabled: Tensor

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        saturate: bool | None = None,
        in_place: bool = False,
        compat_mask: bool = True,
        channel_len: int = 1,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        if saturate is False:
            raise ConfigError("saturate=False is not supported; leave it at None (gradient 0 outside the range)")
        if in_place:
            raise ConfigError("in_place=True is not supported; leave it at False")
        self.activation_post_process: ObserverBase = observer(**observer_kwargs)
        self.name = ""
        self.journal: Journal | None = None
        self._is_fake_quant_on = self._is_observer_on = True
        given = self.activation_post_process.calculate_qparams()[0] if self.activation_post_process.is_fixed else None
        self.register_buffer("scale", torch.ones(channel_len) if given is None else given.reshape(-1).clone())
        self.register_buffer("zero_point", torch.zeros(self.scale.shape, dtype=torch.int64))
        self.register_buffer("fake_quant_enabled", torch.ones(1, dtype=torch.uint8))
        self.register_buffer("observer_enabled", torch.ones(1, dtype=torch.uint8))

    @classmethod
    def with_args(cls, **kwargs: Any) -> FakeQuantFactory:
        """A factory of fake quants with these arguments, as a qconfig takes it."""
        return FakeQuantFactory(cls, **kwargs)

    @property
    def info(self) -> QInfo:
        return self.activation_post_process.info

    @property
    def dtype(self) -> str:
        return self.activation_post_process.dtype

    @property
    def ch_axis(self) -> int:
        return self.activation_post_process.ch_axis

    @property
    def is_calibrated(self) -> bool:
        """Whether the scale comes from data, a checkpoint or the user."""
        return self.activation_post_process.is_calibrated

    @property
    def is_fake_quant_on(self) -> bool:
        return self._is_fake_quant_on

    @property
    def is_frozen(self) -> bool:
        """Whether `freeze_part` keeps it in VALIDATION."""
        return FROZEN_ATTRIBUTE in self.__dict__

    @property
    def is_rounding(self) -> bool:
        """Whether values are rounded now: fake quant is on, here and globally."""
        return self._is_fake_quant_on and GlobalFakeQuantSwitch.is_on

    @property
    def is_observer_on(self) -> bool:
        return self._is_observer_on

    @property
    def tensor_scale(self) -> Tensor:
        """Scale as a QTensor carries it: 0-d per tensor, `[C]` per channel."""
        return self.scale if self.ch_axis >= 0 else self.scale.reshape(())

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switch rounding on or off."""
        self._is_fake_quant_on = enabled
        self.fake_quant_enabled.fill_(int(enabled))

    def disable_fake_quant(self) -> None:
        """Switch rounding off."""
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Switch observing on or off."""
        self._is_observer_on = enabled
        self.observer_enabled.fill_(int(enabled))

    def disable_observer(self) -> None:
        """Switch observing off."""
        self.enable_observer(False)

    def set_qparams(self, scale: float | Tensor, zero_point: int | Tensor | None = None) -> None:
        """Give the scale by hand; the observer's bounds follow it.

        Raises:
            ConfigError: a scale is not positive, or the zero point is not 0.
        """
        value = torch.as_tensor(scale, dtype=torch.float32, device=self.scale.device).reshape(-1)
        if not bool((value > 0).all()) or (zero_point is not None and bool(torch.as_tensor(zero_point).any())):
            raise ConfigError(f"{self.name}: scale {scale}, zero_point {zero_point}: expected scale > 0, zero_point 0")
        self.scale, self.zero_point = value.clone(), torch.zeros_like(value, dtype=torch.int64)
        self.activation_post_process.set_absmax(self._bound())

    def forget(self) -> None:
        """Drop what was observed: uncalibrated again, except where the scale was given."""
        if not self.activation_post_process.is_fixed:
            self.activation_post_process.forget()
            self.scale, self.zero_point = torch.ones_like(self.scale[:1]), torch.zeros_like(self.zero_point[:1])

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the observer."""
        return self.activation_post_process.calculate_qparams()

    def calibrate_on(self, x: Tensor) -> None:
        """Observe one tensor now, whatever the state (weights: their scale needs no data)."""
        self._observe(x)

    def forward(self, x: Tensor) -> Tensor:
        """Observe and fake-quantize, each if it is on.

        Args:
            x: float tensor, any shape.

        Raises:
            StateError: the state would observe nothing, or round with an unknown scale (policy "error").
        """
        if self._is_observer_on and self.training:
            self._observe(x)
            if self.journal is not None:
                self.journal.count_observed(self.name, is_calibration=not self._is_fake_quant_on)
        elif self._is_observer_on and not self._is_fake_quant_on:
            complain(StateError, _MISTAKE_3.format(name=self.name or "a fake quant"))
        if not self.is_rounding:
            return x
        if not self.is_calibrated and x.numel() > 0:
            complain(NotCalibratedError, _MISTAKE_2.format(name=self.name or "a fake quant"))
        y = fake_quantize(x, self.scale, self.info, self.ch_axis)
        if self.journal is not None and y.requires_grad:
            self.journal.watch_backward(y)
        return y

    def only_rounds(self, x: Tensor) -> bool:
        """Whether a call would do nothing but round x: VALIDATION without a gradient, and nobody watches the call."""
        return (
            self.is_rounding
            and not (self._is_observer_on and self.training)
            and self.is_calibrated
            and self.ch_axis < 0
            and type(self).forward is FakeQuantize.forward
            and not (self._forward_hooks or self._forward_pre_hooks)
            and not (torch.is_grad_enabled() and x.requires_grad)
            and x.dtype is torch.float32
            and is_plain_eager(x)
        )

    def round_in_place(self, x: Tensor, lowest: float, highest: float) -> Tensor:
        """Clamp to `[lowest, highest]` and fake-quantize, written over x.

        For callers that own x and asked `only_rounds`. An activation that clamps costs nothing here: rounding keeps
        order, so its bounds are bounds of codes.
        """
        inverse = 1.0 / self.scale.reshape(())
        bounds = torch.round(torch.stack([lowest * inverse, highest * inverse])).tolist()
        low, high = max(bounds[0], self.info.quant_min), min(bounds[1], self.info.quant_max)
        return round_to_grid(x, self.tensor_scale, low, high, out=x)

    def quantize_weight(self, weight: Tensor) -> Tensor:
        """Fake-quantize a weight; an uncalibrated scale is computed from the weight itself."""
        if not self.is_calibrated:
            self.calibrate_on(weight)
        quantized: Tensor = self(weight)
        return quantized

    def extra_repr(self) -> str:
        observer = self.activation_post_process
        return (
            f"fake_quant_enabled={_flag(self.fake_quant_enabled)}, observer_enabled={_flag(self.observer_enabled)}, "
            f"quant_min={observer.quant_min}, quant_max={observer.quant_max}, dtype={observer.dtype}, "
            f"qscheme={observer.qscheme}, ch_axis={observer.ch_axis}, scale={self.scale!r}, "
            f"zero_point={self.zero_point!r}"
        )

    def _observe(self, x: Tensor) -> None:
        try:
            self.activation_post_process(x)
        except ModelError as error:
            raise ModelError(f"{self.name or 'a fake quant'}: {error}") from None
        self._take_scale()

    def _take_scale(self) -> None:
        if not self.is_calibrated:
            return
        scale, zero_point = self.activation_post_process.calculate_qparams()
        self.scale, self.zero_point = scale.reshape(-1), zero_point.reshape(-1)

    def _bound(self) -> Tensor:
        bound = self.scale * self.info.half_range
        return bound if self.ch_axis >= 0 else bound.reshape(())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load scale and bounds; the enabled flags stay as they are (loading never changes a state)."""
        flags = {name: getattr(self, name).clone() for name in ("fake_quant_enabled", "observer_enabled")}
        for name in ("scale", "zero_point"):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=self.scale.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, value in flags.items():
            setattr(self, name, value)  # not in place: with assign=True the buffer is the checkpoint's own tensor

    def match_bounds_to_scale(self) -> None:
        """After loading: bounds that do not give the stored scale (clipping observers) become +-scale x half range."""
        observer = self.activation_post_process
        if observer.is_fixed:  # a given scale is not a checkpoint's to change
            self._take_scale()
            return
        if not observer.is_calibrated:
            return
        made, _ = observer.calculate_qparams()
        if made.numel() != self.scale.numel() or not torch.allclose(made.reshape(-1), self.scale, rtol=1e-6, atol=0):
            observer.set_absmax(self._bound())


class FakeQuantFactory(partial[FakeQuantize]):
    """A FakeQuantize class with its arguments; what a qconfig's `activation` and `weight` are."""

    def with_args(self, **kwargs: Any) -> FakeQuantFactory:
        """The same with other arguments on top."""
        return FakeQuantFactory(self.func, **{**self.keywords, **kwargs})


def _flag(value: Tensor) -> str:
    return f"tensor([{int(value)}], dtype=torch.uint8)"
