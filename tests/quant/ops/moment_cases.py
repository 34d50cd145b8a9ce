"""What the tests of var and std, and those of both norms, share: dimensions in all spellings, checks of an operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from profiler.errors import UnsupportedOpError
from tests.quant.integer_reference import requantized
from tests.quant.op_forms import (
    assert_codes_equal,
    assert_nearly_same_codes,
    assert_within_one_step,
    codes,
    fake_quantized_float64,
    on_grid,
    quantized,
)
from tests.quant.ops.arithmetic_cases import RANGES, S, function_forms, real

Steps = Callable[[np.ndarray, tuple[int, ...] | None, bool], np.ndarray]
SHAPE = (4, 5, 6, 7)
DIMS: list[dict[str, Any]] = [
    {"dim": 1}, {"dim": -1}, {"dim": (2, 3)}, {"dim": [2, 3], "keepdim": True}, {"dim": (0, -1)}, {},
    {"axis": 1, "keepdims": True},
]  # fmt: skip


def axes_of(dims: dict[str, Any]) -> tuple[Any, bool]:
    """Axis and keepdims for numpy."""
    axis = dims.get("dim", dims.get("axis"))
    return tuple(axis) if isinstance(axis, list) else axis, dims.get("keepdim", dims.get("keepdims", False))


def check_steps(name: str, steps: Steps, dims: dict[str, Any], dtype: str, power: int = 1, **kwargs: Any) -> None:
    """Codes of int8 and int16 inputs are the rounded float64 result of the codes, but for ties, and fake quant is near.

    Args:
        name: canonical function name.
        steps: `(codes as float64, axis, keepdims) -> result in steps ** power`.
        dims: arguments that say what is reduced.
        dtype: of input and output.
        power: 2 where the result's unit is the square of the input's.
        kwargs: other arguments of the function.
    """
    x_q = codes(SHAPE, 1, dtype)
    scale = 0.0131417 if dtype == "qint8" else 5.1e-5
    axis, keep = axes_of(dims)
    expected = steps(x_q.numpy().astype(np.float64), axis, keep) * float(S(scale)) ** power
    out_scale = float(np.abs(expected).max()) / RANGES[dtype][1] * 1.03
    fake, integer = function_forms(name, out_scale, dtype)
    result = integer(quantized(x_q, scale, dtype), **dims, **kwargs)
    assert_within_one_step(result, fake_quantized_float64(expected, out_scale, RANGES[dtype]), out_scale, 0.9)
    y_fq = fake(on_grid(x_q, scale, dtype), **dims, **kwargs)
    assert_nearly_same_codes(y_fq, result, 0.9)  # float32 sums: among 30 int16 results a tie or two
    np.testing.assert_allclose(steps(real(x_q, scale), axis, keep), expected, rtol=1e-6)


def check_variance_steps(
    name: str, moment: Any, dims: dict[str, Any], dtype: str, unbiased: bool, power: int = 1
) -> None:
    """As check_steps, for `moment`, np.var or np.std; `correction` and `unbiased` are two spellings of one argument."""

    def steps(x: np.ndarray, axis: Any, keep: bool) -> np.ndarray:
        return np.asarray(moment(x, axis=axis, ddof=int(unbiased), keepdims=keep))

    correction = {"correction": int(unbiased)} if dims else {"unbiased": unbiased}
    check_steps(name, steps, dims, dtype, power=power, **correction)


def check_variance_spellings(name: str) -> None:
    """Arguments by position mean what they mean to torch."""
    x = quantized(codes((3, 8)), 0.02)
    _, integer = function_forms(name, 0.05)
    everything = integer(x, False)
    assert torch.equal(everything.plain, integer(x, dim=None, correction=0).plain)
    assert torch.equal(integer(x, 1, False, True).plain, integer(x, dim=1, unbiased=False, keepdim=True).plain)
    assert torch.equal(integer(x, 1).plain, integer(x, dim=(1,), correction=1).plain)


def check_variance_zeros(name: str) -> None:
    """Equal codes, one element and no row give 0."""
    _, integer = function_forms(name, 0.05)
    same = quantized(torch.full((2, 300), -128, dtype=torch.int8), 0.02)
    assert_codes_equal(integer(same, dim=1), np.zeros(2, np.int64))
    one = quantized(codes((2, 1)), 0.02)
    assert_codes_equal(integer(one, dim=1), np.zeros(2, np.int64))
    assert_codes_equal(integer(quantized(codes((0, 4)), 0.02), dim=1), np.zeros(0, np.int64))


def check_variance_extreme_scale(name: str, moment: Any, scale: float, power: int = 1) -> None:
    """Codes equal the arithmetic in float32 that the integer form states, its unit `scale ** power`."""
    x_q = codes((4, 64))
    out_scale = float(np.float32(scale) ** power * 30)
    _, integer = function_forms(name, out_scale)
    steps = moment(x_q.numpy().astype(np.float64), axis=1, ddof=1).astype(S)
    multiplier = (S(scale) * S(scale) if power == 2 else S(scale)) / S(out_scale)
    assert_codes_equal(integer(quantized(x_q, scale), dim=1), requantized(steps, multiplier))


NORMS: dict[float, Any] = {
    2: lambda x, axis, keep: np.sqrt((x * x).sum(axis=axis, keepdims=keep)),
    1: lambda x, axis, keep: np.abs(x).sum(axis=axis, keepdims=keep),
    math.inf: lambda x, axis, keep: np.abs(x).max(axis=axis, keepdims=keep),
    -math.inf: lambda x, axis, keep: np.abs(x).min(axis=axis, keepdims=keep),
}


def check_norm_steps(name: str, dims: dict[str, Any], dtype: str, order: float, **given: float) -> None:
    """As check_steps; `given` is the order by the function's own name of it."""
    if order == -math.inf and not dims:
        return  # the least magnitude of all is 0 here
    check_steps(name, NORMS[order], dims, dtype, **given)


def check_norm_zeros(name: str) -> None:
    """Zeros have the norm 0, and no row has none."""
    _, integer = function_forms(name, 0.05)
    assert_codes_equal(integer(quantized(torch.zeros(2, 9, dtype=torch.int8), 0.02), dim=1), np.zeros(2, np.int64))
    assert_codes_equal(integer(quantized(codes((0, 4)), 0.02), dim=1), np.zeros(0, np.int64))


def check_norm_extreme_scale(name: str, scale: float) -> None:
    """Codes equal the arithmetic in float32 that the integer form states."""
    x_q = codes((4, 64))
    _, integer = function_forms(name, scale * 5)
    steps = np.sqrt((x_q.numpy().astype(np.float64) ** 2).sum(1)).astype(S)
    assert_codes_equal(integer(quantized(x_q, scale), dim=1), requantized(steps, S(scale) / S(scale * 5)))


def check_norm_refuses_other_orders(name: str) -> None:
    """The error names the order."""
    _, integer = function_forms(name, 0.05)
    with pytest.raises(UnsupportedOpError, match="p=3"):
        integer(quantized(codes((4, 4)), 0.02), 3, dim=1)
