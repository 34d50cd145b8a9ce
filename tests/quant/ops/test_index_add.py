from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from profiler.quant import QTensor
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_in_networks, function_forms, rounded

X_SCALE, SOURCE_SCALE, OUT_SCALE = 0.03, 0.017, 0.09


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("alpha", [1, -0.5])
@pytest.mark.parametrize(
    ("x_shape", "dim", "count"), [((5, 3), 0, 9), ((5, 3), -1, 7), ((4,), 0, 0), ((2, 4, 3), 1, 11), ((3, 0), 0, 2)]
)
def test_index_add_equals_arithmetic(
    dtype: str, index_dtype: torch.dtype, alpha: float, x_shape: tuple[int, ...], dim: int, count: int
) -> None:
    shape = list(x_shape)
    shape[dim] = count
    x_q, source_q = codes(x_shape, 0, dtype), codes(tuple(shape), 1, dtype)
    index = torch.randint(x_shape[dim], (count,), generator=torch.Generator().manual_seed(2)).to(index_dtype)
    _, integer = function_forms("index_add", OUT_SCALE, dtype)
    x, source = quantized(x_q, X_SCALE, dtype), quantized(source_q, SOURCE_SCALE, dtype)
    result = integer(x, dim, index, source, alpha=alpha)
    sums = np.zeros(x_shape, np.int64)
    where: Any = [slice(None)] * len(x_shape)
    where[dim] = index.numpy()
    np.add.at(sums, tuple(where), source_q.numpy().astype(np.int64))
    factor = S(SOURCE_SCALE) * S(alpha) / S(OUT_SCALE)
    steps = x_q.numpy().astype(S) * (S(X_SCALE) / S(OUT_SCALE)) + sums.astype(S) * factor
    assert_codes_equal(result, rounded(steps, dtype), dtype)


def test_index_add_of_numbers_without_dimensions() -> None:
    _, integer = function_forms("index_add", 0.1)
    x, source = (quantized(torch.tensor(v, dtype=torch.int8), 0.1) for v in (10, 5))
    assert int(integer(x, 0, torch.tensor([0]), source).plain) == 15


def test_index_add_fake_quant_equals_integer_form() -> None:
    x_q, source_q = codes((60, 30)), codes((400, 30), 1)
    index = torch.randint(60, (400,), generator=torch.Generator().manual_seed(2))
    fake, integer = function_forms("index_add", 0.0912871)
    y_fq = fake(on_grid(x_q, X_SCALE), 0, index, on_grid(source_q, SOURCE_SCALE))
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, X_SCALE), 0, index, quantized(source_q, SOURCE_SCALE)))


def test_index_add_gradients_are_those_of_the_float_function() -> None:
    index = torch.tensor([1, 1, 0])
    fake, _ = function_forms("index_add", 0.01, "qint16")
    fake.train()
    fake.activation_post_process.disable_observer()
    generator = torch.Generator().manual_seed(0)
    x, source = (torch.randn(n, 2, generator=generator).requires_grad_() for n in (4, 3))
    scale = torch.tensor(0.01)
    y = fake(QTensor.wrap(x, scale, "qint16"), 0, index, QTensor.wrap(source, scale, "qint16"), alpha=3)
    weight = torch.randn(4, 2, generator=generator)
    (y.plain * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)
    torch.testing.assert_close(source.grad, 3 * weight[index])


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x.index_add(1, m.positions, x[:, :3] * 0.5),
        lambda m, x: torch.index_add(x, 3, m.positions, x[..., :3], alpha=2),
    ],
)
def test_index_add_in_networks(body: Any) -> None:
    check_in_networks(body, "index_add_0")
