"""softmax, log_softmax, softmin: differences to the row's largest code, a table of exponentials, exact integer sums."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.affine import quantize, round_half_even
from profiler.quant.ops.exact_sum import exact_sum
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.geometry import sizes_of
from profiler.quant.ops.lookup import cached, key_of, read_table
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor

# exp is held in steps of 2**-30; rows have up to 2**30 elements.
EXP_BITS = 30
_MAX_ROW_BITS = 30
_LOG_BITS = 14


def softmax_codes(
    out: OutputQuant,
    input: QTensor,
    dim: int | None = None,
    dtype: Any = None,
    *,
    blocked: Tensor | None = None,
    **_: Any,
) -> QTensor:
    """Codes of a softmax.

    Args:
        out: output scale and dtype.
        input: codes, any shape.
        dim: dimension whose values add up to 1; None as in torch: 0 for 0, 1 or 3 dimensions, else 1.
        dtype: has no meaning for codes.
        blocked: True where the result is exactly 0 (attention masks), broadcasts with input; rows that are blocked
            everywhere are 0.

    Returns:
        With d = max(x_q) - x_q and E[d] = round(2**30 * exp(-s_x * d)): `round(E[d] * (1 / (sum(E[d]) * s_y)))`, the
        sum exact, the rest in float64. A row of equal codes, saturated ones too, is uniform.
    """
    dim = _dim(input, dim)
    x_q = input.plain if blocked is None else input.plain.masked_fill(blocked, input.info.quant_min)
    return _share_codes(out, input, _distance(x_q, dim), dim, blocked)


def softmin_codes(out: OutputQuant, input: QTensor, dim: int | None = None, dtype: Any = None, **_: Any) -> QTensor:
    """Codes of the softmax of -x; arguments as softmax_codes."""
    dim = _dim(input, dim)
    return _share_codes(out, input, _distance(-input.plain.to(torch.int32), dim), dim)


def log_softmax_codes(out: OutputQuant, input: QTensor, dim: int | None = None, dtype: Any = None, **_: Any) -> QTensor:
    """Codes of a log softmax: `round((-s_x * d - log(sum(E[d]) / 2**30)) / s_y)`; arguments as softmax_codes.

    The logarithm of the exact sum is read from a table of 2**14 + 1 values with linear steps between them (error below
    1e-9).
    """
    dim = _dim(input, dim)
    distance = _distance(input.plain, dim)
    total = exact_sum(_exponentials(out, input, distance), (dim,), 2**EXP_BITS)
    y = -(distance.double() * input.scale.double()) - _log_of_total(out, total)
    return out.wrap(quantize(y, out.scale.double(), out.info))


def _share_codes(
    out: OutputQuant, input: QTensor, distance: Tensor, dim: int, blocked: Tensor | None = None
) -> QTensor:
    exponentials = _exponentials(out, input, distance)
    if blocked is not None:
        exponentials = exponentials.masked_fill(blocked, 0.0)
    total = exact_sum(exponentials, (dim,), 2**EXP_BITS)
    if blocked is not None:
        total = total.clamp_min(1.0)
    steps = exponentials * (1.0 / (total * out.scale.double()))
    return out.wrap(round_half_even(steps).clamp_(out.info.quant_min, out.info.quant_max).to(out.info.torch_dtype))


def _distance(x_q: Tensor, dim: int) -> Tensor:
    """Max - x along `dim`: 0..255 or 0..65535, int32."""
    x = x_q.to(torch.int32)
    if x.dim() == 0 or sizes_of(x)[dim] == 0:
        return torch.zeros_like(x)
    return x.amax(dim, keepdim=True) - x


def _exponentials(out: OutputQuant, input: QTensor, distance: Tensor) -> Tensor:
    """Integers `round(2**30 * exp(-s_x * d))`, carried by float64."""
    table = cached(out, ("softmax", *key_of(input, out)), lambda: _exp_table(input))
    return read_table(table, distance)


def _exp_table(input: QTensor) -> Tensor:
    steps = torch.arange(input.info.quant_max - input.info.quant_min + 1, device=input.plain.device)
    return torch.round(torch.exp(steps.double() * -input.scale.double()) * 2.0**EXP_BITS)


def _log_of_total(out: OutputQuant, total: Tensor) -> Tensor:
    """log(total / 2**30) of integers 2**30 .. 2**60 (float64): `k * log 2` plus the log of the rest in [1, 2)."""
    powers, values, slopes = cached(out, ("log", str(total.device)), lambda: _log_tables(total.device))
    exponent = (total.unsqueeze(-1) >= powers).to(torch.int64).sum(-1)
    rest = total / read_table(powers, exponent) * 2.0  # exact: a division by a power of two
    steps = (rest - 1.0) * 2.0**_LOG_BITS
    index = torch.floor(steps)
    entry = index.to(torch.int64)
    near = read_table(values, entry) + (steps - index) * read_table(slopes, entry)
    return near + exponent.double() * _LOG_2


_LOG_2 = 0.6931471805599453


def _log_tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """2**31 .. 2**61; log(1 + i / 2**14), and what it grows by to the next i."""
    powers = 2.0 ** torch.arange(EXP_BITS + 1, EXP_BITS + _MAX_ROW_BITS + 2, device=device).double()
    values = torch.log1p(torch.arange(2**_LOG_BITS + 1, device=device).double() / 2.0**_LOG_BITS)
    return powers, values, torch.cat([values[1:] - values[:-1], values.new_zeros(1)])


def _dim(input: Tensor, dim: int | None) -> int:
    if dim is None:
        return 0 if input.dim() in (0, 1, 3) else 1
    return dim


def _bind(module: nn.Module) -> dict[str, Any]:
    return {"dim": getattr(module, "dim", -3)}  # Softmax2d has no dim: it is the channels of [..., C, H, W]


def _float_form(function: Any) -> Any:
    def run(input: Tensor, dim: int | None = None, dtype: Any = None, **_: Any) -> Any:
        return function(input, _dim(input, dim), dtype=dtype)

    return run


def softmax_float(
    input: Tensor, dim: int | None = None, dtype: Any = None, *, blocked: Tensor | None = None, **_: Any
) -> Tensor:
    """F.softmax, with exactly 0 where `blocked`."""
    dim = _dim(input, dim)
    if blocked is None:
        return F.softmax(input, dim, dtype=dtype)
    weights = F.softmax(input.masked_fill(blocked, torch.finfo(input.dtype).min), dim, dtype=dtype)
    return weights.masked_fill(blocked, 0.0)


SOFTMAX = register(
    OpSpec("softmax", Family.FUNCTION, functions=("softmax",), modules=(nn.Softmax, nn.Softmax2d), bind=_bind,
           float_fn=softmax_float, integer_fn=softmax_codes,
           note="table of exponentials with 30 fractional bits, exact sums")
)  # fmt: skip
SOFTMIN = register(
    OpSpec("softmin", Family.FUNCTION, functions=("softmin",), modules=(nn.Softmin,), bind=_bind,
           float_fn=_float_form(F.softmin), integer_fn=softmin_codes, note="as softmax")
)  # fmt: skip
LOG_SOFTMAX = register(
    OpSpec("log_softmax", Family.FUNCTION, functions=("log_softmax",), modules=(nn.LogSoftmax,), bind=_bind,
           float_fn=_float_form(F.log_softmax), integer_fn=log_softmax_codes, note="as softmax; logarithm by table")
)  # fmt: skip
