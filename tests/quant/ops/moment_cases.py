"""What the tests of var, std and norms share: dimensions in all spellings, and the checks of one operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.quant.op_forms import (
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
