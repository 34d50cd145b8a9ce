from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from profiler.errors import UnsupportedOpError
from profiler.quant.ops.functional import FunctionOp
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.table_cases import TableTests, codes_of, every_code, real_values


class TestSquareOfTensor(TableTests):
    name = "pow"
    truth = staticmethod(lambda x: x * x)
    spellings = (lambda x: x**2, lambda x: torch.pow(x, 2), lambda x: x.pow(2))
    bound: ClassVar = {"exponent": 2}


class TestNegativePower(TableTests):
    name = "pow"
    truth = staticmethod(lambda x: 1 / np.sqrt(x))
    spellings = (lambda x: x**-0.5,)
    bound: ClassVar = {"exponent": -0.5}


def test_pow_number_to_tensor_equals_formula() -> None:
    fake, integer = forms_of(FunctionOp("pow", torch.pow), 0.1)
    y_q = integer(2, quantized(every_code("qint8"), 0.05))
    assert_codes_equal(y_q, codes_of(2 ** real_values("qint8", 0.05), 0.1))
    assert_nearly_same_codes(fake(2, on_grid(every_code("qint8"), 0.05)), y_q)


def test_pow_of_two_int8_tensors_every_pair_equals_formula() -> None:
    fake, integer = forms_of(FunctionOp("pow", torch.pow), 0.2)
    rows, columns = every_code("qint8").reshape(-1, 1), every_code("qint8").reshape(1, -1)
    y_q = integer(quantized(rows, 0.03), quantized(columns, 0.02))
    with np.errstate(all="ignore"):
        real = real_values("qint8", 0.03)[:, None] ** real_values("qint8", 0.02)
    assert_codes_equal(y_q, codes_of(real, 0.2))
    assert_nearly_same_codes(fake(on_grid(rows, 0.03), on_grid(columns, 0.02)), y_q)


def test_pow_of_two_int16_tensors_is_refused_with_advice() -> None:
    _, integer = forms_of(FunctionOp("pow", torch.pow), 0.2)
    x = quantized(codes((3,), dtype="qint16"), 0.1, "qint16")
    with pytest.raises(UnsupportedOpError, match=r"got qint16 \*\* qint16, expected int8 for both; use int8"):
        integer(x, x)
