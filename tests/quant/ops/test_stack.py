from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from profiler.quant import FloatFunctional
from tests.quant.integer_reference import requantized
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_in_networks, function_forms


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 0), ((3, 4), 1), ((3, 4), -1), ((0, 4), 1), ((), 0)])
def test_stack_of_mixed_dtypes_equals_arithmetic(dim: int, dtype: str, shape: Any) -> None:
    dtypes, scales = ("qint8", "qint16", "qint8"), (0.02, 0.0001, 0.03)
    parts = [codes(shape, i, t) for i, t in enumerate(dtypes)]
    _, integer = function_forms("stack", 0.03, dtype)
    result = integer([quantized(p, s, t) for p, s, t in zip(parts, scales, dtypes, strict=True)], dim)
    rescaled = [
        requantized(np.asarray(p.numpy()), S(s) / S(0.03), RANGES[dtype]) for p, s in zip(parts, scales, strict=True)
    ]
    assert_codes_equal(result, np.stack(rescaled, dim), dtype)


def test_stack_fake_quant_equals_integer_form_and_functional() -> None:
    parts, scales = [codes((200, 10)), codes((200, 10), 1)], (0.0131417, 0.0414214)
    fake, integer = forms_of(FloatFunctional(), 0.0271828)
    result = integer.stack([quantized(p, s) for p, s in zip(parts, scales, strict=True)], 1)
    assert_nearly_same_codes(fake.stack([on_grid(p, s) for p, s in zip(parts, scales, strict=True)], 1), result)


def test_stack_in_networks() -> None:
    check_in_networks(lambda m, x: torch.stack([x, x.relu(), x * 2], 1), "stack_0")
