"""pow: a table of one operand where the other is a number, of both where both are int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.errors import UnsupportedOpError
from profiler.quant.affine import quantize
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.lookup import (
    as_number,
    cached,
    every_value,
    finite_gradient,
    key_of,
    offsets,
    read_table,
    table_codes,
)
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor

_LARGEST_TABLE = 2**16


def pow_codes(out: OutputQuant, input: Any, exponent: Any) -> QTensor:
    """Codes of `input ** exponent`.

    Args:
        out: output scale and dtype.
        input: codes or a number.
        exponent: codes that broadcast with input, or a number.

    Raises:
        UnsupportedOpError: both are tensors and not both int8.
    """
    if isinstance(input, QTensor) and isinstance(exponent, QTensor):
        return _pow_of_two(out, input, exponent)
    input, exponent = _number(input), _number(exponent)
    if isinstance(input, QTensor):
        return table_codes(out, input, lambda x: torch.pow(x, exponent), ("pow", None, exponent))
    return table_codes(out, exponent, lambda x: torch.pow(input, x), ("pow", input, None))


def _number(operand: Any) -> Any:
    return operand if isinstance(operand, QTensor) else as_number(operand)


def _pow_of_two(out: OutputQuant, input: QTensor, exponent: QTensor) -> QTensor:
    entries = (input.info.quant_max - input.info.quant_min + 1, exponent.info.quant_max - exponent.info.quant_min + 1)
    if entries[0] * entries[1] > _LARGEST_TABLE:
        raise UnsupportedOpError(
            f"pow of two tensors: got {input.qdtype} ** {exponent.qdtype}, expected int8 for both; use int8 there, a "
            "number as exponent, or qconfig = None"
        )
    key = ("pow", *key_of(input, out), *key_of(exponent, out))
    table = cached(out, key, lambda: _table_of_two(out, input, exponent))
    return out.wrap(read_table(table, offsets(input) * entries[1] + offsets(exponent)))


def _table_of_two(out: OutputQuant, input: QTensor, exponent: QTensor) -> Tensor:
    with torch.no_grad():
        real = torch.pow(every_value(input).double()[:, None], every_value(exponent).double()).to(torch.float32)
        return quantize(torch.where(torch.isnan(real), 0.0, real), out.scale, out.info).reshape(-1)


def _pow_float(input: Any, exponent: Any) -> Any:
    return torch.pow(finite_gradient(input), finite_gradient(exponent))


POW = register(
    OpSpec("pow", Family.FUNCTION, functions=("pow",), float_fn=_pow_float, integer_fn=pow_codes, saturates=True,
           note="table; tensor ** number, number ** tensor, int8 tensor ** int8 tensor; "
                "Inf saturates to the end of the range, NaN is 0")
)  # fmt: skip
