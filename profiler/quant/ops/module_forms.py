"""Functions as modules, for eager models: one instance per call site."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.quant.ops.functional import FunctionOp
from profiler.quant.ops.lookup import register_table

_LEAST_LOG = -10.0


def hard_log(x: Tensor) -> Tensor:
    """log(x), but at least -10, also for 0 and negative x."""
    return torch.log(x.clamp_min(math.exp(_LEAST_LOG))).clamp_min(_LEAST_LOG)


HARD_LOG = register_table("hard_log", hard_log, note="HardLog: log(x), at least -10")


class _Form(FunctionOp):
    def __init__(self, function: str, func: Any, **bound: Any) -> None:
        super().__init__(function, func, bound, type(self).__name__)


class Exp(_Form):
    """torch.exp."""

    def __init__(self) -> None:
        super().__init__("exp", torch.exp)


class Log(_Form):
    """torch.log; 0 gives the smallest code."""

    def __init__(self) -> None:
        super().__init__("log", torch.log)


class HardLog(_Form):
    """torch.log with results of at least -10."""

    def __init__(self) -> None:
        super().__init__("hard_log", hard_log)


class Sin(_Form):
    """torch.sin."""

    def __init__(self) -> None:
        super().__init__("sin", torch.sin)


class Cos(_Form):
    """torch.cos."""

    def __init__(self) -> None:
        super().__init__("cos", torch.cos)


class Sqrt(_Form):
    """torch.sqrt; negative values give 0."""

    def __init__(self) -> None:
        super().__init__("sqrt", torch.sqrt)


class Reciprocal(_Form):
    """torch.reciprocal; 0 gives the largest code."""

    def __init__(self) -> None:
        super().__init__("reciprocal", torch.reciprocal)


class Erf(_Form):
    """torch.erf."""

    def __init__(self) -> None:
        super().__init__("erf", torch.erf)


class Floor(_Form):
    """torch.floor."""

    def __init__(self) -> None:
        super().__init__("floor", torch.floor)


class Ceil(_Form):
    """torch.ceil."""

    def __init__(self) -> None:
        super().__init__("ceil", torch.ceil)


class Pow(_Form):
    """torch.pow.

    Args:
        exponent: a number; None: the exponent is the second argument of the call.
    """

    def __init__(self, exponent: float | None = None) -> None:
        super().__init__("pow", torch.pow, **({} if exponent is None else {"exponent": exponent}))


class Div(_Form):
    """torch.div of two tensors.

    Args:
        rounding_mode: None, "trunc" or "floor".
    """

    def __init__(self, rounding_mode: str | None = None) -> None:
        super().__init__("div", torch.div, rounding_mode=rounding_mode)


class Interpolate(_Form):
    """F.interpolate; all arguments but the input."""

    def __init__(
        self,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        antialias: bool = False,
    ) -> None:
        super().__init__(
            "interpolate", F.interpolate, size=size, scale_factor=scale_factor, mode=mode, align_corners=align_corners,
            recompute_scale_factor=recompute_scale_factor, antialias=antialias,
        )  # fmt: skip
