"""glu: exact integer products of codes and a table of sigmoids, rounded once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.lookup import attributes, cached, every_value, key_of, offsets, read_table
from profiler.quant.ops.operands import codes_of_steps
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor

# A sigmoid is held in steps of 2**-32: its product with an int16 code stays below 2**47, exact in float64.
SIGMOID_BITS = 32


def glu_codes(out: OutputQuant, input: QTensor, dim: int = -1) -> QTensor:
    """Codes of a gated linear unit: the first half along `dim` times the sigmoid of the second half.

    Args:
        out: output scale and dtype.
        input: codes, any shape with an even size along `dim`.
        dim: dimension that is halved.

    Returns:
        With G[q] = round(2**32 * sigmoid(s_x * q)): `clamp(round(x_q * G[gate_q] * (s_x / (2**32 * s_y))))`, the
        product exact, the rest in float64.

    Source:
        Dauphin et al., Language Modeling with Gated Convolutional Networks, 2017, equation 1.
    """
    value, gate = input.plain.chunk(2, dim)
    table = cached(out, ("glu", *key_of(input, out)), lambda: _sigmoid_table(input))
    product = value.to(torch.float64) * read_table(table, offsets(input.like(gate)))
    return codes_of_steps(out, product * (input.scale.double() * 2.0**-SIGMOID_BITS / out.scale.double()))


def _sigmoid_table(x: QTensor) -> Tensor:
    """Integers `round(2**32 * sigmoid(s_x * q))` of every code q in order, carried by float64."""
    return torch.round(torch.sigmoid(every_value(x).double()) * 2.0**SIGMOID_BITS)


def _glu_float(input: Tensor, dim: int = -1) -> Tensor:
    return F.glu(input, dim)


GLU = register(
    OpSpec("glu", Family.FUNCTION, functions=("glu",), modules=(nn.GLU,), bind=attributes("dim"),
           float_fn=_glu_float, integer_fn=glu_codes, note="value times the sigmoid of the gate, one rounding")
)  # fmt: skip
