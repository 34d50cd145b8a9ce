"""PReLU: one multiplier for codes at or above 0, one per channel below."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.affine import along_axis, round_half_even
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.parameters import FakeQuantWithParameters, with_parameters
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, to_float


def prelu_codes(out: OutputQuant, input: QTensor, weight: Tensor) -> QTensor:
    """Codes of `x` where it is at least 0 and of `weight[c] * x` below.

    Args:
        out: output scale and dtype.
        input: codes `[N, C, ...]` (or `[C]`).
        weight: slopes `[C]` or `[1]`, float.

    Returns:
        `clamp(round(x_q * m))` with m = s_x / s_y, below 0 times the slope; one rounding.
    """
    x = input.plain
    multiplier = input.scale / out.scale
    slopes = to_float(weight).detach().to(torch.float32) * multiplier
    below = along_axis(slopes, x.dim(), 1) if slopes.numel() > 1 and x.dim() > 1 else slopes.reshape(())
    y = x.clamp_min(0).to(torch.float32) * multiplier  # one of the two products is 0: their sum is exact
    y = y + x.clamp_max(0).to(torch.float32) * below
    return out.wrap(round_half_even(y).clamp_(out.info.quant_min, out.info.quant_max).to(out.info.torch_dtype))


class FakeQuantPReLU(FakeQuantWithParameters, nn.PReLU):
    """PReLU with a fake-quantized output; the slopes stay float."""

    spec_name = "prelu"


def _prelu(module: nn.Module, qconfig: QConfig) -> nn.Module:
    return with_parameters(FakeQuantPReLU, module, qconfig)


def _prelu_float(input: Tensor, weight: Tensor) -> Any:
    return F.prelu(input, weight)


PRELU = register(
    OpSpec("prelu", Family.FUNCTION, functions=("prelu",), modules=(nn.PReLU,), fake_quant=_prelu,
           bind=lambda module: {"weight": module.weight}, float_fn=_prelu_float, integer_fn=prelu_codes,
           plain_arguments=((1, "weight"),), note="one slope or one per channel; slopes stay float")
)  # fmt: skip
