from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import QTensor
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.scale_keeping_cases import Call, assert_front_ends_run

POOLS_2D: dict[str, Any] = {
    "plain": nn.MaxPool2d(2),
    "padded": nn.MaxPool2d(3, 2, 1),
    "dilated": nn.MaxPool2d(2, 1, dilation=2),
    "ceil": nn.MaxPool2d(2, 2, ceil_mode=True),
    "function": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "adaptive": nn.AdaptiveMaxPool2d((2, 3)),
    "adaptive_function": lambda x: F.adaptive_max_pool2d(x, 1),
}
POOLS_1D: dict[str, Any] = {"plain": nn.MaxPool1d(2), "function": lambda x: F.max_pool1d(x, 3, 1, 1),
                            "adaptive_function": lambda x: F.adaptive_max_pool1d(x, 4)}  # fmt: skip


def assert_keeps_codes(pool: Any, x_q: torch.Tensor, dtype: str) -> None:
    y = pool(quantized(x_q, 0.3, dtype))
    expected = pool(x_q.double()).to(x_q.dtype)
    assert isinstance(y, QTensor)
    assert y.plain.dtype == x_q.dtype
    assert torch.equal(y.plain, expected)
    assert torch.equal(pool(on_grid(x_q, 0.3, dtype)).int_repr(), expected)


@pytest.mark.parametrize("name", POOLS_2D)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_max_pool_2d_integer_form_is_the_largest_code(name: str, dtype: str) -> None:
    assert_keeps_codes(POOLS_2D[name], codes((2, 3, 9, 7), dtype=dtype), dtype)


@pytest.mark.parametrize("name", POOLS_1D)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_max_pool_1d_integer_form_is_the_largest_code(name: str, dtype: str) -> None:
    assert_keeps_codes(POOLS_1D[name], codes((2, 3, 9), dtype=dtype), dtype)


def test_max_pool_padding_of_least_codes_is_not_seen() -> None:
    x_q = torch.full((1, 1, 4, 4), -128, dtype=torch.int8)
    assert bool((F.max_pool2d(quantized(x_q, 0.3), 3, 1, 1).plain == -128).all())


@pytest.mark.parametrize("pool", [
    nn.MaxPool3d(2), nn.MaxPool3d((1, 3, 2), 1, (0, 1, 1)), nn.AdaptiveMaxPool3d((2, 1, 3)),
    lambda x: F.max_pool3d(x, 2, ceil_mode=True),
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_max_pool_3d_integer_form_is_the_largest_code(pool: Any, dtype: str) -> None:
    assert_keeps_codes(pool, codes((2, 3, 4, 5, 6), dtype=dtype), dtype)


@pytest.mark.parametrize(("pool", "shape"), [
    (nn.MaxPool1d(2, return_indices=True), (2, 3, 8)), (nn.MaxPool2d(2, return_indices=True), (2, 3, 6, 6)),
    (nn.MaxPool3d(2, return_indices=True), (1, 2, 4, 4, 4)),
    (nn.AdaptiveMaxPool2d(2, return_indices=True), (2, 3, 6, 6)),
    (lambda x: F.max_pool2d(x, 3, 1, 1, return_indices=True), (2, 3, 6, 6)),
])  # fmt: skip
@pytest.mark.parametrize("form", [quantized, on_grid])
def test_max_pool_indices_are_plain_and_point_at_the_values(pool: Any, shape: Any, form: Any) -> None:
    x_q = codes(shape)
    values, indices = pool(form(x_q, 0.3))
    expected, _ = pool(x_q.double())
    assert isinstance(values, QTensor)
    assert type(indices) is torch.Tensor
    assert torch.equal(values.int_repr(), expected.to(torch.int8))
    assert torch.equal(x_q.flatten(2).gather(2, indices.flatten(2)), values.int_repr().flatten(2))


def test_max_pool_runs_in_both_front_ends() -> None:
    assert_front_ends_run(nn.MaxPool3d(2), (2, 3, 4, 4, 4))
    assert_front_ends_run(nn.MaxPool2d(3, 2, 1), (2, 3, 7, 7))
    assert_front_ends_run(Call(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), (2, 3, 6, 6))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_max_pool_of_a_wide_channels_last_image_keeps_codes(ceil_mode: bool, dtype: str) -> None:
    x_q = codes((2, 5, 22, 23), dtype=dtype).to(memory_format=torch.channels_last)
    pool = nn.MaxPool2d(3, 2, ceil_mode=ceil_mode)
    pooled = pool(quantized(x_q, 0.3, dtype))
    assert torch.equal(pooled.int_repr().double(), pool(x_q.double()))
