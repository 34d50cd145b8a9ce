from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from profiler.quant import QTensor
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, S, check_in_networks, function_forms, rounded

X_SCALE, SRC_SCALE, OUT_SCALE = 0.03, 0.017, 0.09


def indices(shape: tuple[int, ...], count: int) -> torch.Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(2))


def truth(x_q: Any, dim: int, index: Any, src_q: Any) -> np.ndarray:
    """Sums of the codes, element by element in Python's integers."""
    total = np.zeros(x_q.shape, np.int64)
    for place in np.ndindex(*index.shape):
        target = list(place)
        target[dim] = int(index[place])
        total[tuple(target)] += int(src_q[place])
    return total


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize(
    ("x_shape", "dim", "index_shape", "src_shape"),
    [
        ((5, 3), 0, (9, 3), (9, 3)),
        ((5, 3), 1, (4, 7), (6, 8)),
        ((4,), 0, (0,), (3,)),
        ((2, 4, 3), -2, (2, 9, 3), (2, 9, 3)),
    ],
)
def test_scatter_add_equals_arithmetic(
    dtype: str, x_shape: Any, dim: int, index_shape: tuple[int, ...], src_shape: Any
) -> None:
    x_q, src_q = codes(x_shape, 0, dtype), codes(src_shape, 1, dtype)
    index = indices(index_shape, x_shape[dim])
    _, integer = function_forms("scatter_add", OUT_SCALE, dtype)
    result = integer(quantized(x_q, X_SCALE, dtype), dim, index, quantized(src_q, SRC_SCALE, dtype))
    sums = truth(x_q, dim % len(x_shape), index, src_q).astype(S)
    steps = x_q.numpy().astype(S) * (S(X_SCALE) / S(OUT_SCALE)) + sums * (S(SRC_SCALE) / S(OUT_SCALE))
    assert_codes_equal(result, rounded(steps, dtype), dtype)


def test_scatter_add_many_to_one_place_is_exact() -> None:
    src_q = torch.full((200_000,), 127, dtype=torch.int8)
    _, integer = function_forms("scatter_add", 200.0)
    index = torch.zeros(200_000, dtype=torch.int64)
    result = integer(quantized(torch.zeros(1, dtype=torch.int8), 1.0), 0, index, quantized(src_q, 0.001))
    assert_codes_equal(result, rounded(S(25_400_000) * (S(0.001) / S(200.0)))[None])


def test_scatter_add_fake_quant_equals_integer_form() -> None:
    x_q, src_q = codes((60, 30)), codes((400, 30), 1)
    index = indices((400, 30), 60)
    fake, integer = function_forms("scatter_add", 0.0912871)
    y_fq = fake(on_grid(x_q, X_SCALE), 0, index, on_grid(src_q, SRC_SCALE))
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, X_SCALE), 0, index, quantized(src_q, SRC_SCALE)))


def test_scatter_add_gradients_are_those_of_the_float_function() -> None:
    index = indices((6, 3), 4)
    fake, _ = function_forms("scatter_add", 0.01, "qint16")
    fake.train()
    fake.activation_post_process.disable_observer()
    generator = torch.Generator().manual_seed(0)
    x, src = (torch.randn(n, 3, generator=generator).requires_grad_() for n in (4, 6))
    scale = torch.tensor(0.01)
    y = fake(QTensor.wrap(x, scale, "qint16"), 0, index, QTensor.wrap(src, scale, "qint16"))
    weight = torch.randn(4, 3, generator=generator)
    (y.plain * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)
    torch.testing.assert_close(src.grad, weight.gather(0, index))


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x.scatter_add(1, m.positions.view(1, 3, 1, 1).expand(2, 3, 6, 6), x * 0.5),
        lambda m, x: torch.scatter_add(x * 2, 1, m.positions.view(1, 3, 1, 1).expand(2, 3, 6, 6), x),
    ],
)
def test_scatter_add_in_networks(body: Any) -> None:
    check_in_networks(body, "scatter_add_0")
