from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_in_networks, function_forms, rounded


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize(("beta", "alpha"), [(1.0, 1.0), (0.5, -2.0), (0.0, 1.0)])
@pytest.mark.parametrize("shape", [(4, 10, 12), (12,), (10, 1)])
def test_baddbmm_equals_arithmetic_and_fake_quant(dtype: str, beta: float, alpha: float, shape: Any) -> None:
    z_q, x_q, y_q = codes(shape, 2), codes((4, 10, 64)), codes((4, 64, 12), 1)
    out_scale = 0.7071068 if dtype == "qint8" else 0.7071068 / 256
    fake, integer = function_forms("baddbmm", out_scale, dtype)
    scales = (0.1732051, 0.0131417, 0.0314159)
    parts = (z_q, x_q, y_q)
    result = integer(*(quantized(q, s) for q, s in zip(parts, scales, strict=True)), beta=beta, alpha=alpha)
    acc = np.matmul(x_q.numpy().astype(np.int64), y_q.numpy().astype(np.int64)).astype(S)
    left = z_q.numpy().astype(S) * (S(scales[0]) * S(beta) / S(out_scale))
    right = acc * (S(scales[1]) * S(scales[2]) * S(alpha) / S(out_scale))
    assert_codes_equal(result, rounded(left + right, dtype), dtype)
    y_fq = fake(*(on_grid(q, s) for q, s in zip(parts, scales, strict=True)), beta=beta, alpha=alpha)
    assert_nearly_same_codes(y_fq, result, 0.999 if dtype == "qint8" else 0.99)


def test_baddbmm_high_precision_output_is_the_scaled_sum() -> None:
    z_q, x_q, y_q = codes((3, 4), 2), codes((3, 8)), codes((8, 4), 1)
    _, integer = function_forms("addmm", None)
    result = integer(quantized(z_q, 0.5), quantized(x_q, 0.02), quantized(y_q, 0.03), alpha=2)
    acc = (x_q.numpy().astype(np.int64) @ y_q.numpy().astype(np.int64)).astype(S)
    expected = z_q.numpy().astype(S) * S(0.5) + acc * (S(0.02) * S(0.03)) * S(2)
    np.testing.assert_array_equal(result.numpy(), expected)


def test_baddbmm_in_networks() -> None:
    def body(m: Any, x: Any) -> Any:
        x = x.flatten(2)
        return torch.baddbmm(x[:, :, :4], x, x.transpose(1, 2), beta=0.5, alpha=2)

    check_in_networks(body, "baddbmm_0")
