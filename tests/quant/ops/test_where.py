from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from profiler.errors import UnsupportedOpError
from profiler.quant import QTensor
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import DTYPES, S, check_in_networks, every_pair, function_forms, rounded


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("shapes", [((4, 5), (4, 5), (4, 5)), ((5,), (4, 5), (4, 1)), ((0, 5), (5,), (0, 1))])
def test_where_two_tensors_equals_arithmetic(dtypes: Any, shapes: Any) -> None:
    condition = codes(shapes[0], 5) > 0
    x_q, y_q = codes(shapes[1], 0, dtypes[0]), codes(shapes[2], 1, dtypes[1])
    scales = [{"qint8": 0.03, "qint16": 0.0001}[t] for t in dtypes]
    _, integer = function_forms("where", scales[2], dtypes[2])
    result = integer(condition, quantized(x_q, scales[0], dtypes[0]), quantized(y_q, scales[1], dtypes[1]))
    left, right = (q.numpy().astype(S) * (S(s) / S(scales[2])) for q, s in zip((x_q, y_q), scales, strict=False))
    assert_codes_equal(result, rounded(np.where(condition.numpy(), left, right), dtypes[2]), dtypes[2])


def test_where_fake_quant_equals_integer_form_in_both_spellings() -> None:
    x_q, y_q = every_pair()
    condition = (x_q + y_q) % 2 == 0
    fake, integer = function_forms("where", 0.2136)
    result = integer(condition, quantized(x_q, 0.0131417), quantized(y_q, 0.4142136))
    x, y = on_grid(x_q, 0.0131417), on_grid(y_q, 0.4142136)
    assert_nearly_same_codes(fake(condition, x, y), result)
    assert torch.equal(fake(x, condition, y).plain, fake(condition, x, y).plain)
    assert torch.equal(fake(x, condition=condition, other=y).plain, fake(condition, input=x, other=y).plain)


@pytest.mark.parametrize("make", [quantized, on_grid])
@pytest.mark.parametrize("number", [0, 0.5, torch.tensor(0.5)])
def test_where_with_a_number_keeps_the_scale(make: Any, number: Any) -> None:
    x_q = codes((4, 5))
    x, condition = make(x_q, 0.1), x_q > 10
    code = torch.tensor(round(float(number) / 0.1), dtype=torch.int8)
    for result, expected in (
        (torch.where(condition, x, number), torch.where(condition, x_q, code)),
        (torch.where(condition, number, x), torch.where(condition, code, x_q)),
        (x.where(condition, number), torch.where(condition, x_q, code)),
    ):
        assert isinstance(result, QTensor)
        assert (result.qdtype, float(result.scale)) == ("qint8", float(torch.tensor(0.1)))
        assert torch.equal(result.int_repr(), expected)


def test_where_of_two_tensors_without_a_scale_is_an_error() -> None:
    x = quantized(codes((4,)), 0.1)
    with pytest.raises(UnsupportedOpError, match=r"where of two tensors, called at .*test_where.py"):
        torch.where(x > 0, x, x)


SPELLINGS = {
    "comparison": (lambda m, x: torch.where(x > 0, x, x * 0.1), "where_0"),
    "buffer": (lambda m, x: torch.where(m.keep, x, x.relu()), "where_0"),
    "method": (lambda m, x: x.where(m.keep, x * 0.5), "where_0"),
    "constant": (lambda m, x: torch.where(m.keep, x, m.shift), "where_0"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_where_in_networks(spelling: str) -> None:
    check_in_networks(*SPELLINGS[spelling])  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0.0, 0.25])
def test_where_with_a_number_in_networks_needs_no_scale(number: float) -> None:
    check_in_networks(lambda m, x: torch.where(m.keep, x, number))
