from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import QTensor
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
from tests.quant.ops.average_cases import assert_front_ends_run_it
from tests.quant.ops.pool_cases import averaged, windows

X_SCALE, OUT_SCALE = 0.0512345, 0.0318281  # a ratio that makes no ties
CASES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 2},
    "overlapping": {"kernel_size": 3, "stride": 1},
    "padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "not_counting_pad": {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    "ceil": {"kernel_size": 2, "stride": 2, "ceil_mode": True},
    "ceil_padded": {"kernel_size": 3, "stride": 3, "padding": 1, "ceil_mode": True},
    "ceil_padded_not_counting": {
        "kernel_size": 3,
        "stride": 2,
        "padding": 1,
        "ceil_mode": True,
        "count_include_pad": False,
    },
    "divisor": {"kernel_size": 2, "divisor_override": 3},
    "uneven": {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)},
}


def expected(x: np.ndarray, module: nn.AvgPool2d) -> np.ndarray:
    def pair(value: Any) -> tuple[int, int]:
        return value if isinstance(value, tuple) else (value, value)

    kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    rows, columns = (windows(x.shape[2 + i], kernel[i], stride[i], padding[i], module.ceil_mode) for i in range(2))
    ratio = np.float64(np.float32(X_SCALE)) / np.float64(np.float32(OUT_SCALE))
    return averaged(x, rows, columns, ratio, counts_padding=module.count_include_pad, divisor=module.divisor_override)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6)])
def test_avg_pool2d_integer_form_equals_integer_arithmetic(case: str, size: tuple[int, int]) -> None:
    module, x_q = nn.AvgPool2d(**CASES[case]), codes((2, 3, *size))
    _, integer = forms_of(module, OUT_SCALE)
    assert_codes_equal(integer(quantized(x_q, X_SCALE)), expected(x_q.numpy(), module))


@pytest.mark.parametrize("case", CASES)
def test_avg_pool2d_fake_quant_equals_formula_and_integer_form(case: str) -> None:
    module, x_q = nn.AvgPool2d(**CASES[case]), codes((4, 8, 17, 19))
    fake, integer = forms_of(module, OUT_SCALE)
    y_fq = fake(on_grid(x_q, X_SCALE))
    real = module(x_q.double() * float(np.float32(X_SCALE))).numpy()
    assert_within_one_step(y_fq, fake_quantized_float64(real, OUT_SCALE), OUT_SCALE)
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, X_SCALE)))


def test_avg_pool2d_unbatched_and_empty_batch_keep_their_shapes() -> None:
    module = nn.AvgPool2d(2)
    _, integer = forms_of(module, OUT_SCALE)
    x_q = codes((3, 6, 6))
    assert_codes_equal(integer(quantized(x_q, X_SCALE)), expected(x_q.numpy()[None], module)[0])
    assert integer(quantized(codes((0, 3, 6, 6)), X_SCALE)).shape == (0, 3, 3, 3)


def test_avg_pool2d_int16_sums_are_exact() -> None:
    module, x_q = nn.AvgPool2d(16), codes((1, 2, 32, 32), dtype="qint16")
    x_q[:, 0] = 32767
    _, integer = forms_of(module, X_SCALE, "qint16")
    y = integer(quantized(x_q, X_SCALE, "qint16"))
    sums = x_q.numpy().astype(np.int64).reshape(1, 2, 2, 16, 2, 16).sum((3, 5))
    reference = np.rint(sums.astype(np.float32) * np.float32(1 / 256)).astype(np.int64)
    assert_codes_equal(y, reference, "qint16")


def test_avg_pool2d_fake_quant_gradient_is_that_of_the_mean() -> None:
    fake, _ = forms_of(nn.AvgPool2d(2), 0.1)
    x = on_grid(codes((1, 1, 4, 4)), 0.01).dequantize().requires_grad_()
    fake(QTensor.wrap(x, torch.tensor(0.01), "qint8")).dequantize().sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 0.25).all())
    assert F.avg_pool2d(x, 2).abs().max() < 12.7


def test_avg_pool2d_runs_in_both_front_ends_and_onnx_runtime() -> None:
    assert_front_ends_run_it(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 3, 7, 8))


def test_avg_pool2d_of_many_sizes_keeps_few_multipliers() -> None:
    module = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
    _, integer = forms_of(module, 0.02)
    for size in [*range(4, 30), *range(4, 8)]:
        x_q = codes((1, 2, size, 5), size)
        fresh = forms_of(module, 0.02)[1]
        assert torch.equal(integer(quantized(x_q, 0.03)).plain, fresh(quantized(x_q, 0.03)).plain)
    assert len(integer.__dict__["_cache"]) == 8


def test_avg_pool2d_edited_output_scale_is_used_by_the_next_forward() -> None:
    _, integer = forms_of(nn.AvgPool2d(2), 0.02)
    x = quantized(codes((1, 2, 6, 6)), 0.03)
    integer(x)
    integer.out_scale.mul_(2)
    assert torch.equal(integer(x).plain, forms_of(nn.AvgPool2d(2), 0.04)[1](x).plain)
