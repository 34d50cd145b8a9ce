"""matmul, baddbmm, einsum of activations: exact integer sums, requantized with one multiplier."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from profiler.errors import UnsupportedOpError
from profiler.quant.ops.constants import is_tracing
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.operands import codes_of_steps, rescaled
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, to_float
from profiler.quant.requantize import FLOAT64_EXACT, carrier_dtype, requantize


def matmul_codes(out: OutputQuant, input: QTensor, other: QTensor) -> QTensor:
    """Codes of `input @ other`.

    Args:
        out: output scale and dtype.
        input: codes `[..., N, K]`, as torch.matmul.
        other: codes `[..., K, M]`.
    """
    return out.wrap(requantize(_accumulator(input, other), input.scale * other.scale / out.scale, out.info))


def matmul_values(input: QTensor, other: QTensor) -> Tensor:
    """Real values of `input @ other` for an output of high precision: `acc * (s_x * s_o)` in float32."""
    return _accumulator(input, other).to(torch.float32) * (input.scale * other.scale)


def baddbmm_codes(
    out: OutputQuant, input: Any, batch1: QTensor, batch2: QTensor, *, beta: float = 1.0, alpha: float = 1.0
) -> QTensor:
    """Codes of `beta * input + alpha * (batch1 @ batch2)`, one rounding of the sum.

    Args:
        out: output scale and dtype.
        input: codes that broadcast with the product.
        batch1: codes `[..., N, K]`.
        batch2: codes `[..., K, M]`.
        beta: factor of input.
        alpha: factor of the product.
    """
    acc = _accumulator(batch1, batch2).to(torch.float32)
    product = acc * (batch1.scale * batch2.scale * alpha / out.scale)
    return codes_of_steps(out, rescaled(out, input, beta) + product)


def baddbmm_values(input: Any, batch1: QTensor, batch2: QTensor, *, beta: float = 1.0, alpha: float = 1.0) -> Any:
    """Real values of `beta * input + alpha * (batch1 @ batch2)`, float32."""
    return to_float(input) * beta + matmul_values(batch1, batch2) * alpha


def einsum_codes(out: OutputQuant, *args: Any) -> QTensor:
    """Codes of torch.einsum of any number of operands.

    Args:
        out: output scale and dtype.
        args: equation and QTensors of codes, in any of torch's spellings.
    """
    equation, operands = _equation_and_operands(args)
    return out.wrap(requantize(_einsum(equation, operands), _product_of_scales(operands) / out.scale, out.info))


def einsum_values(*args: Any) -> Tensor:
    """Real values of torch.einsum, float32."""
    equation, operands = _equation_and_operands(args)
    return _einsum(equation, operands).to(torch.float32) * _product_of_scales(operands)


def _accumulator(x: QTensor, other: QTensor) -> Tensor:
    carrier = torch.float64  # exact below 2**53: for int16 codes up to a fan-in of 2**23
    if not is_tracing():  # there shapes are tensors
        carrier = carrier_dtype(x.shape[-1] * x.info.quant_min * other.info.quant_min)
    return torch.matmul(x.plain.to(carrier), other.plain.to(carrier))


def _einsum(equation: str, operands: list[QTensor]) -> Tensor:
    if is_tracing():  # there shapes are tensors; the bound was checked when the model ran
        return torch.einsum(equation, *(x.plain.to(torch.float64) for x in operands))
    bound = _fan_in(equation, operands) * math.prod(-x.info.quant_min for x in operands)
    if bound >= FLOAT64_EXACT:
        raise UnsupportedOpError(
            f"einsum {equation!r}: sums can reach {bound}, expected below 2**53; multiply two operands at a time"
        )
    carrier = carrier_dtype(bound)
    return torch.einsum(equation, *(x.plain.to(carrier) for x in operands))


def _product_of_scales(operands: list[QTensor]) -> Tensor:
    return reduce(torch.mul, (x.scale for x in operands))


def _fan_in(equation: str, operands: list[QTensor]) -> int:
    """Number of products in one sum."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, x in zip(left.split(","), operands, strict=True):
        before, dots, after = term.partition("...")
        shape = list(x.shape)
        rest = shape[len(before) : len(shape) - len(after)] if dots else []
        sizes.update(zip(before, shape, strict=False))
        sizes.update(zip(reversed(after), reversed(shape), strict=False))
        sizes["..."] = max(sizes.get("...", 1), math.prod(rest))
    kept = set(right) if arrow else {label for label in left if left.count(label) == 1}
    if not arrow or "..." in right:
        kept.add("...")
    return math.prod(size for label, size in sizes.items() if label not in kept)


def _equation_and_operands(args: Any) -> tuple[str, list[Any]]:
    """The equation as text, and the operands; torch also takes `x, [0, 1], y, [1, 2], [0, 2]` and a list of tensors."""
    if isinstance(args[0], str):
        given = args[1:]
        return args[0], list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else list(given)
    has_output = len(args) % 2 == 1
    terms = [_letters(term) for term in args[1::2]]
    equation = ",".join(terms) + (f"->{_letters(args[-1])}" if has_output else "")
    return equation, list(args[: len(args) - has_output : 2])


def _letters(labels: Any) -> str:
    return "".join(
        "..." if label is ... else "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[label] for label in labels
    )


def _matmul_float(input: Any, other: Any) -> Any:
    return torch.matmul(input, other)


def _baddbmm_float(input: Any, batch1: Any, batch2: Any, *, beta: float = 1.0, alpha: float = 1.0) -> Any:
    return beta * input + alpha * torch.matmul(batch1, batch2)


def _einsum_float(*args: Any) -> Any:
    equation, operands = _equation_and_operands(args)
    return torch.einsum(equation, *operands)


MATMUL = register(
    OpSpec("matmul", Family.FUNCTION, functions=("matmul", "bmm", "mm", "mv", "dot"), float_fn=_matmul_float,
           integer_fn=matmul_codes, high_precision_fn=matmul_values,
           note="`@`, torch.matmul, bmm, mm, FloatFunctional.matmul: products of two activations")
)  # fmt: skip
BADDBMM = register(
    OpSpec("baddbmm", Family.FUNCTION, functions=("baddbmm", "addmm"), float_fn=_baddbmm_float,
           integer_fn=baddbmm_codes, high_precision_fn=baddbmm_values, note="torch.baddbmm, torch.addmm; alpha, beta")
)  # fmt: skip
EINSUM = register(
    OpSpec("einsum", Family.FUNCTION, functions=("einsum",), float_fn=_einsum_float, integer_fn=einsum_codes,
           high_precision_fn=einsum_values, note="any equation and number of operands whose sums stay below 2**53")
)  # fmt: skip
