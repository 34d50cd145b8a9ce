"""ReLU keeps the scale; ReLU6 that stands alone has its own."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.affine import round_half_even
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor
from profiler.quant.requantize import requantize


def relu6_codes(out: OutputQuant, input: QTensor, inplace: bool = False) -> QTensor:
    """Codes of min(max(x, 0), 6): requantized, at least 0, at most `round(6 / s_y)`."""
    limit = round_half_even(6.0 / out.scale)
    codes = requantize(input.plain, input.scale / out.scale, out.info, limit=limit)
    return out.wrap(codes.clamp_min_(0))


def _relu6_float(input: Tensor, inplace: bool = False, **_: Any) -> Tensor:
    return F.relu6(input)


def _bind_relu6(module: nn.ReLU6) -> dict[str, Any]:
    return {"inplace": True} if module.inplace else {}


RELU = register(
    OpSpec("relu", Family.SCALE_KEEPING, functions=("relu",), modules=(nn.ReLU,),
           note="fused into the op before it where it can be; alone it keeps its input's scale")
)  # fmt: skip
RELU6 = register(
    OpSpec("relu6", Family.FUNCTION, functions=("relu6",), modules=(nn.ReLU6,), bind=_bind_relu6,
           float_fn=_relu6_float, integer_fn=relu6_codes, note="fused where it can be; alone it has its own scale")
)  # fmt: skip
