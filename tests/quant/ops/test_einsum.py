from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from profiler.errors import UnsupportedOpError
from tests.quant.integer_reference import requantized
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_in_networks, function_forms

EQUATIONS = {
    "ij,jk->ik": ((4, 5), (5, 6)),
    "bij, bkj -> bik": ((2, 4, 5), (2, 3, 5)),
    "bhqd,bhkd->bhqk": ((2, 3, 4, 5), (2, 3, 6, 5)),
    "ij,jk": ((4, 5), (5, 6)),
    "i,j->ij": ((4,), (5,)),
    "ij,ij->": ((4, 5), (4, 5)),
    "...ij,...jk->...ik": ((2, 3, 4, 5), (3, 5, 6)),
    "...i,i...->i": ((2, 3), (3, 2)),
    "ii->i": ((4, 4),),
    "bij->bji": ((2, 3, 4),),
    "ij,jk,kl->il": ((3, 4), (4, 5), (5, 2)),
}


def truth(equation: str, parts: Any, scales: Any, out_scale: float, dtype: str = "qint8") -> np.ndarray:
    acc = torch.einsum(equation, *(p.double() for p in parts)).numpy()  # integers below 2**53: exact
    multiplier = S(scales[0])
    for s in scales[1:]:
        multiplier = multiplier * S(s)
    return requantized(np.asarray(acc), multiplier / S(out_scale), RANGES[dtype])


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("dtype", RANGES)
def test_einsum_equals_arithmetic(equation: str, dtype: str) -> None:
    shapes = EQUATIONS[equation]
    x_dtype = dtype if len(shapes) < 3 else "qint8"
    parts, scales = [codes(s, i, x_dtype) for i, s in enumerate(shapes)], (0.02, 0.03, 0.05)[: len(shapes)]
    _, integer = function_forms("einsum", 0.3, dtype)
    result = integer(equation, *(quantized(p, s, x_dtype) for p, s in zip(parts, scales, strict=True)))
    assert_codes_equal(result, truth(equation, parts, scales, 0.3, dtype), dtype)


def test_einsum_fake_quant_equals_integer_form() -> None:
    parts, scales = [codes((8, 40, 64)), codes((8, 50, 64), 1)], (0.0131417, 0.0314159)
    fake, integer = function_forms("einsum", 0.7071068)
    y_fq = fake("bij,bkj->bik", *(on_grid(p, s) for p, s in zip(parts, scales, strict=True)))
    assert_nearly_same_codes(
        y_fq, integer("bij,bkj->bik", *(quantized(p, s) for p, s in zip(parts, scales, strict=True)))
    )


def test_einsum_other_spellings_equal_the_equation() -> None:
    x, y = quantized(codes((4, 5)), 0.02), quantized(codes((5, 6), 1), 0.03)
    _, integer = function_forms("einsum", 0.3)
    expected = integer("ab,bc->ac", x, y).plain
    assert torch.equal(integer("ab,bc->ac", [x, y]).plain, expected)
    assert torch.equal(integer(x, [0, 1], y, [1, 2], [0, 2]).plain, expected)
    assert torch.equal(integer(x, [..., 1], y, [1, 2], [..., 2]).plain, expected)


def test_einsum_high_precision_output_is_the_scaled_accumulator() -> None:
    x_q, y_q = codes((4, 5)), codes((5, 6), 1)
    _, integer = function_forms("einsum", None)
    acc = (x_q.numpy().astype(np.int64) @ y_q.numpy().astype(np.int64)).astype(S)
    result = integer("ij,jk->ik", quantized(x_q, 0.02), quantized(y_q, 0.03))
    np.testing.assert_array_equal(result.numpy(), acc * (S(0.02) * S(0.03)))


def test_einsum_sums_beyond_float64_are_refused() -> None:
    x = quantized(codes((512, 512), 0, "qint16"), 1.0, "qint16")
    _, integer = function_forms("einsum", 0.3)
    with pytest.raises(UnsupportedOpError, match=r"sums can reach \d+, expected below 2\*\*53"):
        integer("ij,jk,kl->il", x, x, x)


@pytest.mark.parametrize("equation", ["bchw,bdhw->bcd", "bchw,bchv->bcwv"])
def test_einsum_in_networks(equation: str) -> None:
    check_in_networks(lambda m, x: torch.einsum(equation, x, x), "einsum_0")
