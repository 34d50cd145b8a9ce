from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from profiler.errors import UnsupportedOpError
from profiler.quant import FloatFunctional
from profiler.quant.masks import is_mask_scale
from tests.quant.integer_reference import INT8, INT16
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
from tests.quant.ops.arithmetic_cases import (
    DTYPES,
    SHAPES,
    check_dtypes_and_shapes,
    check_gradients,
    check_in_networks,
    function_forms,
    rounded,
)

S = np.float32


def expected_sum(
    x_q: Tensor, x_scale: float, y_q: Tensor, y_scale: float, out_scale: float, code_range: Any = INT8
) -> Any:
    """One rounding of the float32 sum of both rescaled operands."""
    left = x_q.numpy().astype(np.float32) * (S(x_scale) / S(out_scale))
    right = y_q.numpy().astype(np.float32) * (S(y_scale) / S(out_scale))
    return np.clip(np.rint(left + right), *code_range).astype(np.int64)


def test_add_integer_every_pair_of_codes_equals_integer_arithmetic() -> None:
    x_q = torch.arange(-128, 128, dtype=torch.int8)[:, None].expand(256, 256).contiguous()
    y_q = x_q.T.contiguous()
    for scales in ((0.1, 0.1, 0.2), (0.013, 0.4, 0.21), (0.5, 0.25, 0.5), (1.0, 1.0, 2.0)):
        _, integer = forms_of(FloatFunctional(), scales[2])
        result = integer.add(quantized(x_q, scales[0]), quantized(y_q, scales[1]))
        assert_codes_equal(result, expected_sum(x_q, scales[0], y_q, scales[1], scales[2]))


def test_add_every_pair_of_codes_fake_quant_equals_formula_and_integer_form() -> None:
    x_q = torch.arange(-128, 128, dtype=torch.int8)[:, None].expand(256, 256).contiguous()
    y_q = x_q.T.contiguous()
    fake, integer = forms_of(FloatFunctional(), 0.2136)
    y_fq = fake.add(on_grid(x_q, 0.0131417), on_grid(y_q, 0.4142136))
    real = x_q.numpy() * np.float64(S(0.0131417)) + y_q.numpy() * np.float64(S(0.4142136))
    assert_within_one_step(y_fq, fake_quantized_float64(real, 0.2136), 0.2136)
    assert_nearly_same_codes(y_fq, integer.add(quantized(x_q, 0.0131417), quantized(y_q, 0.4142136)))


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.sampled_from(
        [((2, 3, 4), (3, 1)), ((5,), (4, 5)), ((0, 3), (3,)), ((1,), (1,)), ((), (2, 2)), ((2, 2), (1, 1))]
    ),
    scales=st.tuples(*[st.floats(1e-4, 1e3)] * 3),
    seed=st.integers(0, 50),
)
def test_add_integer_broadcast_operands_equal_integer_arithmetic(shapes: Any, scales: Any, seed: int) -> None:
    x_q, y_q = codes(shapes[0], seed), codes(shapes[1], seed + 1)
    _, integer = forms_of(FloatFunctional(), scales[2])
    result = integer.add(quantized(x_q, scales[0]), quantized(y_q, scales[1]))
    assert_codes_equal(result, expected_sum(x_q, scales[0], y_q, scales[1], scales[2]))


def test_add_integer_int16_equals_integer_arithmetic() -> None:
    x_q, y_q = codes((1000,), 0, "qint16"), codes((1000,), 1, "qint16")
    _, integer = forms_of(FloatFunctional(), 0.0003, "qint16")
    result = integer.add(quantized(x_q, 0.0002, "qint16"), quantized(y_q, 0.0001, "qint16"))
    assert_codes_equal(result, expected_sum(x_q, 0.0002, y_q, 0.0001, 0.0003, INT16), "qint16")


def test_add_integer_mixed_dtypes_use_their_own_scales() -> None:
    x_q, y_q = codes((1000,), 0, "qint16"), codes((1000,), 1)
    _, integer = forms_of(FloatFunctional(), 0.1)
    result = integer.add(quantized(x_q, 0.0002, "qint16"), quantized(y_q, 0.05))
    assert_codes_equal(result, expected_sum(x_q, 0.0002, y_q, 0.05, 0.1))


@pytest.mark.parametrize("number", [2, -0.3, 0])
def test_add_integer_number_as_operand_equals_formula(number: float) -> None:
    x_q = codes((256,))
    _, integer = forms_of(FloatFunctional(), 0.03)
    left = x_q.numpy().astype(np.float32) * (S(0.02) / S(0.03))
    expected = np.clip(np.rint(left + S(number) / S(0.03)), *INT8).astype(np.int64)
    assert_codes_equal(integer.add_scalar(quantized(x_q, 0.02), number), expected)


def test_add_integer_float_operand_is_refused() -> None:
    _, integer = forms_of(FloatFunctional(), 0.1)
    with pytest.raises(UnsupportedOpError, match="partly float"):
        integer.add(quantized(codes((3,)), 0.1), torch.rand(3))


def test_add_without_quantized_operands_runs_in_float() -> None:
    _, integer = forms_of(FloatFunctional(), 0.1)
    x = torch.rand(3)
    assert torch.equal(integer.add(x, x), x + x)


def test_add_high_precision_output_is_the_float_sum() -> None:
    fake, integer = forms_of(FloatFunctional(), None)
    x_q, y_q = codes((50,)), codes((50,), 1)
    expected = x_q.float() * S(0.1) + y_q.float() * S(0.3)
    assert torch.equal(integer.add(quantized(x_q, 0.1), quantized(y_q, 0.3)), expected)
    assert torch.equal(fake.add(on_grid(x_q, 0.1), on_grid(y_q, 0.3)), expected)


def is_no_mask(scale: float) -> bool:
    return not is_mask_scale(torch.tensor(scale))


@settings(max_examples=30, deadline=None)
@given(
    dtypes=st.sampled_from(DTYPES),
    shapes=st.sampled_from(SHAPES),
    scales=st.tuples(*[st.floats(1e-8, 1e8).filter(is_no_mask)] * 3),
    seed=st.integers(0, 50),
)
def test_add_any_dtypes_and_scales_equal_arithmetic(dtypes: Any, shapes: Any, scales: Any, seed: int) -> None:
    def truth(x: Any, x_scale: Any, y: Any, y_scale: Any, out_scale: Any, dtype: str) -> np.ndarray:
        return rounded(x * (x_scale / out_scale) + y * (y_scale / out_scale), dtype)

    check_dtypes_and_shapes("add", truth, dtypes, shapes, scales, seed)


def test_add_integer_alpha_and_plain_tensors_equal_formula() -> None:
    x_q, counts = codes((4, 64)), torch.arange(-32, 32)
    _, integer = function_forms("add", 0.5)
    left = x_q.numpy().astype(S) * (S(0.2) / S(0.5))
    expected = rounded(left + counts.numpy().astype(S) * S(-0.5) / S(0.5))
    assert_codes_equal(integer(quantized(x_q, 0.2), counts, alpha=-0.5), expected)
    number = rounded(left + S(3) / S(0.5))
    assert_codes_equal(integer(quantized(x_q, 0.2), torch.tensor(3.0)), number)


def test_add_gradient_is_that_of_the_float_function() -> None:
    check_gradients(torch.add, "add", torch.randn(3, 4), torch.randn(4), alpha=2.0)


def _in_place(module: Any, x: Any) -> Any:
    y = x * 1
    y += x
    y.add_(1)
    return y


SPELLINGS = {
    "operator": lambda m, x: x + x.relu(),
    "reflected": lambda m, x: 1.5 + x,
    "alpha": lambda m, x: torch.add(x, x.relu(), alpha=-2),
    "sum_of_a_list": lambda m, x: sum([x, x.relu(), x]),
    "parameter": lambda m, x: x + m.gain,
    "view_of_a_buffer": lambda m, x: m.shift[:, :4] + x,
    "number_parameter": lambda m, x: x + m.temperature,
    "in_place": _in_place,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_add_in_networks(spelling: str) -> None:
    check_in_networks(SPELLINGS[spelling], "add_0")
