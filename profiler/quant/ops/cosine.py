"""cosine_similarity: exact integer products and squares, correctly rounded float64 behind them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.lookup import attributes
from profiler.quant.ops.operands import codes_of_steps
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor


def cosine_similarity_codes(out: OutputQuant, x1: QTensor, x2: QTensor, dim: int = 1, eps: float = 1e-8) -> QTensor:
    """Codes of the cosine of the angle between two values along a dimension.

    Args:
        out: output scale and dtype.
        x1: codes, any shape.
        x2: codes; broadcasts with x1.
        dim: dimension of the vectors, of the shape that both have together.
        eps: least length that a vector counts with.

    Returns:
        `clamp(round(a.b * s_a * s_b / (|a| * |b|) / s_y))`: the sums of products and of squares are exact in int64 and,
        up to 2**23 elements of int16 codes, in float64, the rest is float64. 0 where a length is 0.
    """
    broadcast: Any = torch.broadcast_tensors
    a, b = (x.to(torch.int64) for x in broadcast(x1.plain, x2.plain))
    a_scale, b_scale = x1.scale.double(), x2.scale.double()
    lengths = _length(a, a_scale, dim, eps) * _length(b, b_scale, dim, eps)
    product = (a * b).sum(dim).to(torch.float64) * (a_scale * b_scale / out.scale.double())
    return codes_of_steps(out, torch.where(lengths == 0, 0.0, product / lengths))


def _length(codes: Tensor, scale: Tensor, dim: int, eps: float) -> Tensor:
    return (torch.sqrt((codes * codes).sum(dim).to(torch.float64)) * scale).clamp_min(eps)


def _cosine_similarity_float(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    return F.cosine_similarity(x1, x2, dim, eps)


COSINE_SIMILARITY = register(
    OpSpec("cosine_similarity", Family.FUNCTION, functions=("cosine_similarity",), modules=(nn.CosineSimilarity,),
           bind=attributes("dim", "eps"), float_fn=_cosine_similarity_float, integer_fn=cosine_similarity_codes,
           saturates=True, note="exact integer sums; broadcasting; 0 beside a vector without length")
)  # fmt: skip
