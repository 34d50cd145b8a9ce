"""cat: every operand is rescaled to the output's scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, to_plain
from profiler.quant.requantize import requantize


def cat_codes(out: OutputQuant, tensors: Sequence[QTensor], dim: int = 0) -> QTensor:
    """Codes of the joined tensors.

    Args:
        out: output scale and dtype.
        tensors: QTensors of codes, equal in all dimensions but `dim`.
        dim: the dimension to join along.
    """
    parts = [requantize(to_plain(t), t.scale / out.scale, out.info) for t in tensors]
    return out.wrap(torch.cat(parts, dim))


def _cat_float(tensors: Any, dim: int = 0) -> Any:
    return torch.cat(tensors, dim)


CAT = register(
    OpSpec("cat", Family.FUNCTION, functions=("cat",), float_fn=_cat_float, integer_fn=cat_codes,
           note="torch.cat, FloatFunctional.cat; operands keep their own scales")
)  # fmt: skip
