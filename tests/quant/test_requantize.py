from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.quant.affine import qinfo
from profiler.quant.requantize import FLOAT32_EXACT, carrier_dtype, requantize
from tests.quant.integer_reference import INT8, INT16, requantized


@pytest.mark.parametrize("multiplier", [1.0, 0.5, 0.25, 0.0039, 1 / 3, 2.0, 1e-6])
@pytest.mark.parametrize("carrier", [torch.int32, torch.float32, torch.float64])
def test_requantize_every_small_accumulator_equals_formula(multiplier: float, carrier: torch.dtype) -> None:
    acc = torch.arange(-70_000, 70_001)
    result = requantize(acc.to(carrier), torch.tensor(multiplier), qinfo("qint8"))
    assert result.dtype == torch.int8
    np.testing.assert_array_equal(result.numpy(), requantized(acc.numpy(), multiplier))


def test_requantize_ties_go_to_the_even_code() -> None:
    acc = torch.tensor([5, 7, -5, -7, 1, -1])
    assert requantize(acc, torch.tensor(0.5), qinfo("qint8")).tolist() == [2, 4, -2, -4, 0, 0]


@settings(max_examples=60, deadline=None)
@given(
    acc=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50),
    multiplier=st.floats(1e-9, 10),
    is_int8=st.booleans(),
)
def test_requantize_whole_int32_range_is_within_one_code_of_float64(
    acc: list[int], multiplier: float, is_int8: bool
) -> None:
    dtype, code_range = ("qint8", INT8) if is_int8 else ("qint16", INT16)
    result = requantize(torch.tensor(acc, dtype=torch.int32), torch.tensor(multiplier), qinfo(dtype)).numpy()
    exact = np.clip(np.rint(np.array(acc, np.float64) * np.float64(np.float32(multiplier))), *code_range)
    np.testing.assert_array_equal(result, requantized(np.array(acc), multiplier, code_range))
    assert np.abs(result.astype(np.int64) - exact).max() <= 1


def test_requantize_per_channel_multiplier_acts_along_its_axis() -> None:
    acc = torch.full((2, 3, 2), 100)
    result = requantize(acc, torch.tensor([0.1, 0.5, 1.0]), qinfo("qint8"), 1)
    assert result[0, :, 0].tolist() == [10, 50, 100]


def test_requantize_limit_caps_codes_from_above_only() -> None:
    acc = torch.tensor([-500, 3, 60, 500])
    assert requantize(acc, torch.tensor(1.0), qinfo("qint8"), limit=torch.tensor(60.0)).tolist() == [-128, 3, 60, 60]


def test_carrier_dtype_leaves_float32_at_its_exact_bound() -> None:
    assert carrier_dtype(FLOAT32_EXACT - 1) is torch.float32
    assert carrier_dtype(FLOAT32_EXACT) is torch.float64


def test_carrier_dtype_reduced_precision_products_refuse_float32() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        assert carrier_dtype(10) is torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")
