"""What all observers share: bounds of what passes, and the scale that they give."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError, NotCalibratedError
from profiler.quant.affine import QInfo, qinfo, scale_from_absmax
from profiler.quant.masks import MASK_SCALE, OFF, is_additive_mask, is_mask_scale

OPTIONAL_KEYS = ("histogram", "histogram_start", "histogram_absmax")


def power_of_two_above(scale: Tensor) -> Tensor:
    """`2^ceil(log2 scale)`, exact: read from the float's mantissa and exponent."""
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2^exponent, mantissa in [0.5, 1)
    return torch.ldexp(torch.ones_like(scale), torch.where(mantissa == 0.5, exponent - 1, exponent))


class ObserverBase(nn.Module):
    """Keeps a moving average of the bounds of what passes.

    `new = old + c * (batch - old)` with `c = averaging_constant`; the first batch sets the value,
    c = 0 then freezes it.
    With `plain_mean` (the calib qconfigs) the weight of batch t is max(c, 1/t), a plain mean for the first 1/c batches.
    Bounds that were loaded or given by hand count as 1/c batches.

    Args:
        averaging_constant: weight of a new batch, 0..1.
        ch_axis: channel axis for per-channel bounds, -1 for one bound per tensor.
        dtype: quantized dtype name, for example "qint8".
        qscheme: torch.per_tensor_symmetric or torch.per_channel_symmetric.
        quant_min: smallest code; the dtype's own if None.
        quant_max: largest code; the dtype's own if None.
        is_sync_quantize: False; one process is supported.
        factory_kwargs: `device` of the buffers.
        plain_mean: average the first batches plainly.
        power_of_two: round scales up to powers of two, `2^ceil(log2 scale)`, as simple targets need them.

    Raises:
        ConfigError: an argument is out of its range, or the observer cannot work per channel.
    """

    supports_per_channel: ClassVar[bool] = True
    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int = -1,
        dtype: str = "qint8",
        qscheme: torch.qscheme = torch.per_tensor_symmetric,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_sync_quantize: bool = False,
        factory_kwargs: dict[str, Any] | None = None,
        plain_mean: bool = False,
        power_of_two: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= averaging_constant <= 1:
            raise ConfigError(f"averaging_constant is {averaging_constant}; expected a value in 0..1")
        if is_sync_quantize:
            raise ConfigError("is_sync_quantize=True is not supported; calibrate in one process")
        if ch_axis >= 0 and not self.supports_per_channel:
            raise ConfigError(f"{type(self).__name__} works per tensor only; got ch_axis={ch_axis}, use min_max or mse")
        if qscheme not in (torch.per_tensor_symmetric, torch.per_channel_symmetric):
            raise ConfigError(f"qscheme is {qscheme}; expected torch.per_tensor_symmetric or per_channel_symmetric")
        self.averaging_constant = averaging_constant
        self.ch_axis, self.dtype, self.qscheme = ch_axis, dtype, qscheme
        info = qinfo(dtype)
        self.quant_min = info.quant_min if quant_min is None else quant_min
        self.quant_max = info.quant_max if quant_max is None else quant_max
        self.plain_mean, self.power_of_two = plain_mean, power_of_two
        self.num_batches = 0
        device = (factory_kwargs or {}).get("device")
        self.register_buffer("min_val", torch.tensor([], device=device))
        self.register_buffer("max_val", torch.tensor([], device=device))

    @classmethod
    def with_args(cls, **kwargs: Any) -> partial[ObserverBase]:
        """A factory of this observer with these arguments."""
        return partial(cls, **kwargs)

    @property
    def info(self) -> QInfo:
        """Code range of this observer's quantizer."""
        own = qinfo(self.dtype)
        return QInfo(own.name, self.quant_min, self.quant_max, own.torch_dtype)

    @property
    def is_calibrated(self) -> bool:
        """Whether a scale is known, from data or given."""
        return self.min_val.numel() > 0

    @property
    def is_fixed(self) -> bool:
        """Whether the scale was given and no data changes it."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """Update the bounds from one batch; empty tensors change nothing.

        Raises:
            ModelError: the batch holds NaN or Inf, and is no additive mask.
        """
        if x.numel() == 0:
            return x
        values = x.detach().to(torch.float32)
        low, high = self._extremes(values)
        if self.ch_axis < 0 and self._takes_mask(values, low, high):
            return x
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise ModelError(
                "a tensor to be observed holds NaN or Inf, so no scale can be made from it; check masks, divisions "
                "and the data before calibration"
            )
        self._absorb(values, low, high)
        return x

    def _takes_mask(self, values: Tensor, low: Tensor, high: Tensor) -> bool:
        """Whether the batch is an additive mask, which gets the scale of masks; one without masked elements is 0."""
        if float(high) != 0:
            return False
        is_known = self.is_calibrated
        is_mask = is_known and is_mask_scale(self.calculate_qparams()[0])
        if float(low) == 0:
            return is_mask
        if (
            (is_known and not is_mask and bool((self.max_val - self.min_val).any()))
            or float(low) > OFF
            or not is_additive_mask(values)
        ):
            return False
        if not is_mask:
            self.set_absmax(torch.full_like(high, MASK_SCALE * self.info.half_range))
        return True

    def bounds(self, values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bound to use for one batch, from its values and its extremes."""
        return low, high

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point (0) of the bounds seen so far.

        Raises:
            NotCalibratedError: nothing was observed.
        """
        if not self.is_calibrated:
            raise NotCalibratedError(f"{type(self).__name__} has observed no data; calibrate first")
        absmax = torch.maximum(self.min_val.abs(), self.max_val.abs())
        scale = self.scale_of(absmax)
        return scale, torch.zeros_like(scale, dtype=torch.int64)

    def scale_of(self, absmax: Tensor) -> Tensor:
        """Scale of a quantizer whose range is +-absmax."""
        scale = scale_from_absmax(absmax, self.quant_min, self.quant_max)
        return power_of_two_above(scale) if self.power_of_two else scale

    def set_absmax(self, absmax: Tensor) -> None:
        """Replace the bounds by +-absmax."""
        self.min_val, self.max_val = -absmax.to(torch.float32), absmax.to(torch.float32)
        self._begin_from_bounds()

    def forget(self) -> None:
        """Be as new: nothing was observed."""
        nothing = torch.tensor([], device=self.min_val.device)
        self.load_state_dict({"min_val": nothing, "max_val": nothing.clone()}, strict=False)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val!r}, max_val={self.max_val!r}"

    def _extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.ch_axis < 0:
            low, high = torch.aminmax(values)
            return low, high
        rows = values.transpose(0, self.ch_axis).reshape(values.shape[self.ch_axis], -1)
        low, high = torch.aminmax(rows, dim=1)
        return low, high

    def _absorb(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        self._update(*self.bounds(values, low, high))

    def _update(self, low: Tensor, high: Tensor) -> None:
        self.num_batches += 1
        if not self.is_calibrated:
            self.min_val, self.max_val = low.clone(), high.clone()
            return
        weight = self.averaging_constant
        if self.plain_mean and weight > 0:
            weight = max(weight, 1.0 / self.num_batches)
        self.min_val = self.min_val + weight * (low - self.min_val)
        self.max_val = self.max_val + weight * (high - self.max_val)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("min_val", "max_val"):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=getattr(self, name).device))
        for name in OPTIONAL_KEYS:  # only some observers keep these; a checkpoint fits with and without them
            own = self._buffers.get(name)
            if own is None:
                state_dict.pop(prefix + name, None)
            elif prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=own.device))
            else:
                setattr(self, name, own.new_zeros(() if own.dim() == 0 else 0))
                state_dict[prefix + name] = self._buffers[name]
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._begin_from_bounds()

    def _begin_from_bounds(self) -> None:
        """The bounds no longer come from batches seen here."""
        is_moving = self.is_calibrated and self.averaging_constant > 0
        self.num_batches = math.ceil(1 / self.averaging_constant) if is_moving else 0
