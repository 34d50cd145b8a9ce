from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from tests.quant.op_forms import codes, forms_of, quantized
from tests.quant.ops.average_cases import (
    OUT_SCALE,
    X_SCALE,
    assert_forms_agree,
    assert_front_ends_run_it,
    assert_integer_equals_arithmetic,
)

CASES: dict[str, Any] = {
    "global": nn.AdaptiveAvgPool1d(1),
    "uneven": nn.AdaptiveAvgPool1d(5),
    "up": nn.AdaptiveAvgPool1d(13),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
@pytest.mark.parametrize("shape", [(2, 3, 8), (3, 11)])
def test_adaptive_avg_pool1d_integer_form_equals_integer_arithmetic(
    case: str, dtype: str, shape: tuple[int, ...]
) -> None:
    assert_integer_equals_arithmetic(CASES[case], shape, 1, dtype)


@pytest.mark.parametrize("case", CASES)
def test_adaptive_avg_pool1d_fake_quant_equals_formula_and_integer_form(case: str) -> None:
    assert_forms_agree(CASES[case], (20, 30, 17))


def test_adaptive_avg_pool1d_empty_batch_keeps_its_shape() -> None:
    module = next(iter(CASES.values()))
    x_q = codes((0, 3, 8))
    _, integer = forms_of(module, OUT_SCALE)
    assert integer(quantized(x_q, X_SCALE)).shape == module(x_q.float()).shape


def test_adaptive_avg_pool1d_front_ends_run_it() -> None:
    assert_front_ends_run_it(next(iter(CASES.values())), (2, 3, 16))
