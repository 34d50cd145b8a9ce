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
    "global": nn.AdaptiveAvgPool3d(1),
    "uneven": nn.AdaptiveAvgPool3d((3, 2, 4)),
    "kept_axis": nn.AdaptiveAvgPool3d((None, 2, 1)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (3, 5, 5, 4)])
def test_adaptive_avg_pool3d_integer_form_equals_integer_arithmetic(
    case: str, dtype: str, shape: tuple[int, ...]
) -> None:
    assert_integer_equals_arithmetic(CASES[case], shape, 3, dtype)


@pytest.mark.parametrize("case", CASES)
def test_adaptive_avg_pool3d_fake_quant_equals_formula_and_integer_form(case: str) -> None:
    assert_forms_agree(CASES[case], (20, 30, 5, 6, 7))


def test_adaptive_avg_pool3d_empty_batch_keeps_its_shape() -> None:
    module = next(iter(CASES.values()))
    x_q = codes((0, 3, 4, 4, 4))
    _, integer = forms_of(module, OUT_SCALE)
    assert integer(quantized(x_q, X_SCALE)).shape == module(x_q.float()).shape


def test_adaptive_avg_pool3d_front_ends_run_it() -> None:
    assert_front_ends_run_it(next(iter(CASES.values())), (2, 3, 4, 4, 4))
