from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.errors import UnsupportedOpError
from profiler.quant import FloatFunctional
from tests.quant.integer_reference import INT8, INT16, requantized
from tests.quant.op_forms import (
    assert_codes_equal,
    assert_nearly_same_codes,
    assert_within_one_step,
    codes,
    fake_quantized_float64,
    forms_of,
    on_grid,
    quantized,
)
from tests.quant.ops.arithmetic_cases import check_in_networks

S = np.float32


def expected_join(parts: Any, scales: Any, out_scale: float, dim: int, code_range: Any = INT8) -> np.ndarray:
    rescaled = [
        requantized(p.numpy().astype(np.int64), S(s) / S(out_scale), code_range)
        for p, s in zip(parts, scales, strict=True)
    ]
    return np.concatenate(rescaled, dim)


def test_cat_integer_every_code_at_three_scales_equals_integer_arithmetic() -> None:
    every = torch.arange(-128, 128, dtype=torch.int8)[None]
    scales = (0.1, 0.2, 0.05)
    for out_scale in (0.1, 0.2, 0.13):
        _, integer = forms_of(FloatFunctional(), out_scale)
        result = integer.cat([quantized(every, s) for s in scales], dim=0)
        assert_codes_equal(result, expected_join([every] * 3, scales, out_scale, 0))


def test_cat_own_scale_keeps_codes_bit_for_bit() -> None:
    every = torch.arange(-128, 128, dtype=torch.int8)
    _, integer = forms_of(FloatFunctional(), 0.1)
    assert torch.equal(integer.cat([quantized(every, 0.1)]).plain, every)


@settings(max_examples=40, deadline=None)
@given(
    dim=st.sampled_from([0, 1, 2, -1, -2]),
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    scales=st.lists(st.floats(1e-3, 1e2), min_size=4, max_size=4),
    out_scale=st.floats(1e-3, 1e2),
    dtype=st.sampled_from(["qint8", "qint16"]),
)
def test_cat_integer_any_shapes_equal_integer_arithmetic(
    dim: int, sizes: list[int], scales: list[float], out_scale: float, dtype: str
) -> None:
    shapes = [[2, 3, 2] for _ in sizes]
    for shape, size in zip(shapes, sizes, strict=True):
        shape[dim] = size
    parts = [codes(tuple(shape), i, dtype) for i, shape in enumerate(shapes)]
    used = scales[: len(parts)]
    _, integer = forms_of(FloatFunctional(), out_scale, dtype)
    result = integer.cat([quantized(p, s, dtype) for p, s in zip(parts, used, strict=True)], dim)
    expected = expected_join(parts, used, out_scale, dim, INT8 if dtype == "qint8" else INT16)
    assert_codes_equal(result, expected, dtype)


def test_cat_fake_quant_equals_formula_and_integer_form() -> None:
    parts, scales = [codes((20, 100)), codes((30, 100), 1)], (0.0131417, 0.4142136)
    fake, integer = forms_of(FloatFunctional(), 0.1732051)
    y_fq = fake.cat([on_grid(p, s) for p, s in zip(parts, scales, strict=True)])
    real = np.concatenate([p.numpy() * np.float64(S(s)) for p, s in zip(parts, scales, strict=True)])
    assert_within_one_step(y_fq, fake_quantized_float64(real, 0.1732051), 0.1732051)
    assert_nearly_same_codes(y_fq, integer.cat([quantized(p, s) for p, s in zip(parts, scales, strict=True)]))


def test_cat_integer_float_operand_is_refused() -> None:
    _, integer = forms_of(FloatFunctional(), 0.1)
    with pytest.raises(UnsupportedOpError, match="partly float"):
        integer.cat([quantized(codes((3,)), 0.1), torch.rand(3)])


def test_cat_integer_mixed_dtypes_equal_integer_arithmetic() -> None:
    parts, dtypes, scales = [codes((2, 3)), codes((4, 3), 1, "qint16")], ("qint8", "qint16"), (0.03, 0.0001)
    for out, code_range, out_scale in (("qint8", INT8, 0.02), ("qint16", INT16, 0.0002)):
        _, integer = forms_of(FloatFunctional(), out_scale, out)
        result = integer.cat([quantized(p, s, t) for p, s, t in zip(parts, scales, dtypes, strict=True)])
        assert_codes_equal(result, expected_join(parts, scales, out_scale, 0, code_range), out)


def test_cat_empty_float_tensor_among_the_operands_counts_for_nothing() -> None:
    x_q = codes((2, 3))
    fake, integer = forms_of(FloatFunctional(), 0.1)
    assert torch.equal(integer.cat([torch.zeros(0), quantized(x_q, 0.1)]).plain, x_q)
    assert torch.equal(fake.cat([torch.zeros(0), on_grid(x_q, 0.1)]).int_repr(), x_q)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: torch.cat([x, x * x], 1),
        lambda m, x: torch.concat((x, m.shift.expand(2, 4, 6, 6)), dim=1),
        lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1),
    ],
)
def test_cat_in_networks(body: Any) -> None:
    check_in_networks(body, "cat_0")
