from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.quant.op_forms import assert_codes_equal, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_in_networks, function_forms, rounded
from tests.quant.ops.table_cases import every_code


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("out_scale", [0.01, 0.3, 1 / 127.5])
def test_sign_every_code_is_minus_one_zero_or_one(dtype: str, out_scale: float) -> None:
    x_q = every_code(dtype)
    fake, integer = function_forms("sign", out_scale, dtype)
    result = integer(quantized(x_q, 0.1, dtype))
    assert_codes_equal(result, rounded(np.sign(x_q.numpy()).astype(S) * (S(1) / S(out_scale)), dtype), dtype)
    assert torch.equal(fake(on_grid(x_q, 0.1, dtype)).int_repr(), result.plain)


def test_sign_in_networks() -> None:
    check_in_networks(lambda m, x: torch.sign(x.relu() - 0.01) * 0.5 + x, "sign_0", tolerance=0.2)
