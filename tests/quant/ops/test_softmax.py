from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from profiler.quant.ops.functional import FunctionOp
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.parameter_cases import check_forms, check_front_ends
from tests.quant.ops.softmax_cases import softmax

MODULES: list[tuple[nn.Module, int]] = [
    (nn.Softmax(-1), -1), (nn.Softmax(1), 1), (nn.Softmax(dim=0), 0), (nn.Softmax(), 1), (nn.Softmax2d(), 1),
]  # fmt: skip


@pytest.mark.parametrize(("module", "axis"), MODULES)
def test_softmax_integer_equals_float64_and_fake_quant(module: nn.Module, axis: int) -> None:
    check_forms(module, lambda x: softmax(x, axis), (3, 5, 4, 21), 1.0)


def test_softmax_long_rows_with_tiny_shares_equal_float64_in_int16() -> None:
    check_forms(nn.Softmax(-1), lambda x: softmax(x, -1), (2, 5000), 0.02)


def test_softmax_rows_of_equal_codes_are_uniform_also_when_saturated() -> None:
    _, integer = forms_of(nn.Softmax(-1), 1 / 255)
    for code in (-128, 0, 127):
        y = integer(quantized(torch.full((2, 5), code, dtype=torch.int8), 10.0))
        assert y.plain.unique().tolist() == [51]


def test_softmax_one_winner_takes_all_and_clips_at_the_last_code() -> None:
    _, integer = forms_of(nn.Softmax(-1), 1 / 127.5)
    assert_codes_equal(integer(quantized(torch.tensor([127, 0, -128], dtype=torch.int8), 1.0)), np.array([127, 0, 0]))


def test_softmax_blocked_positions_are_exactly_zero() -> None:
    module = FunctionOp("softmax", F.softmax, {"dim": -1})
    fake, integer = forms_of(module, 1 / 255)
    x_q, blocked = codes((4, 6, 9)), torch.rand(4, 1, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    blocked[0] = True
    y_q, y_fq = integer(quantized(x_q, 0.05), blocked=blocked), fake(on_grid(x_q, 0.05), blocked=blocked)
    mask = blocked.expand(4, 6, 9)
    assert int(y_q.plain[mask].abs().max()) == 0
    assert int(y_q.plain[0].abs().max()) == 0
    x = np.where(mask.numpy(), -np.inf, x_q.numpy() * np.float64(np.float32(0.05)))
    expected = np.rint(softmax(x[1:], -1) / np.float64(np.float32(1 / 255)))
    assert_codes_equal(quantized(y_q.plain[1:], 1.0), np.clip(expected, -128, 127))
    assert_nearly_same_codes(y_fq, y_q)


def test_softmax_runs_in_both_front_ends() -> None:
    spellings: list[Any] = [nn.Softmax(-1), lambda x: F.softmax(x, 1), lambda x: x.softmax(dim=-1)]
    for op in (*spellings, nn.Softmax2d(), lambda x: torch.softmax(x, 1)):
        check_front_ends(op)
    check_front_ends(lambda x: x.softmax(-1), "qint16")


def test_softmax_gradient_is_finite_in_training() -> None:
    fake, _ = forms_of(nn.Softmax(-1), 1 / 127.5)
    x = torch.randn(3, 7, requires_grad=True)
    y = fake(on_grid(codes((3, 7)), 0.05).like(x * 1))
    (y.dequantize() ** 2).sum().backward()
    assert x.grad is not None
    x64 = x.detach().double().requires_grad_()
    (2 * y.dequantize().detach().double() * F.softmax(x64, -1)).sum().backward()
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=0, max_size=3), st.floats(-8, 8), st.sampled_from([8, 16]))
def test_softmax_any_shape_and_scale(shape: list[int], exponent: float, bits: int) -> None:
    _, integer = forms_of(nn.Softmax(-1 if shape else 0), 1 / 127)
    x_q, x_scale = codes(tuple(shape), dtype=f"qint{bits}"), 10**exponent
    y_q = integer(quantized(x_q, x_scale, f"qint{bits}"))
    assert y_q.shape == x_q.shape
    if x_q.numel() and shape:
        x = x_q.numpy().astype(np.float64) * np.float64(np.float32(x_scale))
        expected = np.clip(np.rint(softmax(x, -1) / np.float64(np.float32(1 / 127))), -128, 127)
        assert np.abs(y_q.plain.numpy() - expected).max() <= 1
