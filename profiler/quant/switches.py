"""Switches for a region of a forward: fake quant off, fake casts off."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.errors import ConfigError


class GlobalFakeQuantSwitch:
    """Turns the rounding of every fake quant off and on again, around a region of a calib model's forward.

    Observers go on observing; states and checkpoints do not change.
    """

    is_on: ClassVar[bool] = True

    @classmethod
    def enable(cls) -> None:
        """Fake quants round again, as their states say."""
        cls.is_on = True

    @classmethod
    def disable(cls) -> None:
        """No fake quant rounds."""
        cls.is_on = False


class FakeCast(nn.Module):
    """Stands in for a lower float type: values are cast there and back.

    Args:
        dtype: torch.float16 or torch.bfloat16.
        min_val: smallest value kept, None: the dtype's own.
        max_val: largest value kept, None: the dtype's own.

    Raises:
        ConfigError: another dtype, or an empty window.
    """

    is_on: ClassVar[bool] = True

    def __init__(
        self, dtype: torch.dtype = torch.float16, min_val: float | None = None, max_val: float | None = None
    ) -> None:
        super().__init__()
        if dtype not in (torch.float16, torch.bfloat16):
            raise ConfigError(f"FakeCast dtype is {dtype}; use torch.float16 or torch.bfloat16")
        limits = torch.finfo(dtype)
        self.dtype = dtype
        self.min_val = limits.min if min_val is None else min_val
        self.max_val = limits.max if max_val is None else max_val
        if not self.min_val < self.max_val:
            raise ConfigError(f"FakeCast window is {min_val}..{max_val}; expected min_val < max_val")

    @classmethod
    def with_args(cls, **kwargs: Any) -> FakeCastFactory:
        """A factory of casts with these arguments, as a qconfig takes it for an activation."""
        return FakeCastFactory(cls, **kwargs)

    @classmethod
    def enable(cls) -> None:
        """Casts act again."""
        cls.is_on = True

    @classmethod
    def disable(cls) -> None:
        """Values pass as they are."""
        cls.is_on = False

    def forward(self, x: Tensor) -> Tensor:
        """The values that the lower type holds, in x's own dtype; beyond the window they saturate."""
        if not FakeCast.is_on:
            return x
        return x.clamp(self.min_val, self.max_val).to(self.dtype).to(x.dtype)

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}, min_val={self.min_val}, max_val={self.max_val}"


class FakeCastFactory(partial[FakeCast]):
    """FakeCast with its arguments."""

    def with_args(self, **kwargs: Any) -> FakeCastFactory:
        """The same with other arguments on top."""
        return FakeCastFactory(self.func, **{**self.keywords, **kwargs})


CAST = "output_cast"


def add_cast(module: nn.Module, qconfig: Any) -> None:
    """Let a qconfig's cast act on the float results of an op, also once it is converted; nothing where it has none."""
    if getattr(qconfig, "cast", None) is not None and CAST not in module._modules:
        module.add_module(CAST, qconfig.cast())
        module.register_forward_hook(_cast_results)


def _cast_results(module: nn.Module, args: Any, result: Any) -> Any:
    cast = module._modules[CAST]

    def lowered(value: Any) -> Any:
        is_float = type(value) is Tensor and value.is_floating_point()
        return cast(value) if is_float and cast is not None else value

    return tree_map(lowered, result)
