"""Averages over windows of any number of axes in numpy, and what the 1d and 3d average pools' tests share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.quant.integer_reference import INT8, INT16, requantized
from tests.quant.onnx_check import assert_equals_onnx
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
from tests.quant.ops.pool_cases import windows
from tests.quant.ops.spatial_gemm_cases import Stubbed
from tests.quant.stages import FRONT_ENDS

X_SCALE, OUT_SCALE = 0.0512345, 0.0318281  # a ratio that makes no ties
RANGES = {"qint8": INT8, "qint16": INT16}


def per_axis(value: Any, num_axes: int) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,) * num_axes


def adaptive_windows(size: int, count: int | None) -> list[tuple[int, int]]:
    count = size if count is None else count
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def module_windows(module: Any, sizes: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """(start, end) of the windows of each axis, in padded coordinates."""
    n = len(sizes)
    if hasattr(module, "output_size"):
        counts = per_axis(module.output_size, n)
        return [adaptive_windows(size, count) for size, count in zip(sizes, counts, strict=True)]
    kernel, stride, padding = (per_axis(v, n) for v in (module.kernel_size, module.stride, module.padding))
    kernel, stride, padding = (v * n if len(v) < n else v for v in (kernel, stride, padding))
    geometry = zip(sizes, kernel, stride, padding, strict=True)
    return [windows(*axis, module.ceil_mode) for axis in geometry]


def expected_codes(module: Any, x: np.ndarray, num_axes: int, dtype: str = "qint8") -> np.ndarray:
    sizes = x.shape[-num_axes:]
    laid = module_windows(module, sizes)
    ratio = np.float64(np.float32(X_SCALE)) / np.float64(np.float32(OUT_SCALE))
    out = np.zeros((*x.shape[:-num_axes], *(len(w) for w in laid)), np.int64)
    for place in itertools.product(*(range(len(w)) for w in laid)):
        spans = [w[i] for w, i in zip(laid, place, strict=True)]
        inside = tuple(slice(max(a, 0), min(b, n)) for (a, b), n in zip(spans, sizes, strict=True))
        part = x[(Ellipsis, *inside)].astype(np.int64)
        counts_padding = getattr(module, "count_include_pad", False)
        shape = [b - a for a, b in spans] if counts_padding else part.shape[-num_axes:]
        divisor = getattr(module, "divisor_override", None) or max(int(np.prod(shape)), 1)
        total = part.sum(tuple(range(-num_axes, 0)))
        out[(Ellipsis, *place)] = requantized(total, np.float32(ratio / divisor), RANGES[dtype])
    return out


def assert_integer_equals_arithmetic(module: nn.Module, shape: tuple[int, ...], num_axes: int, dtype: str) -> None:
    x_q = codes(shape, dtype=dtype)
    _, integer = forms_of(module, OUT_SCALE, dtype)
    assert_codes_equal(
        integer(quantized(x_q, X_SCALE, dtype)), expected_codes(module, x_q.numpy(), num_axes, dtype), dtype
    )


def assert_forms_agree(module: nn.Module, shape: tuple[int, ...]) -> None:
    x_q = codes(shape)
    fake, integer = forms_of(module, OUT_SCALE)
    y_fq = fake(on_grid(x_q, X_SCALE))
    real = module(x_q.double() * float(np.float32(X_SCALE))).numpy()
    assert_within_one_step(y_fq, fake_quantized_float64(real, OUT_SCALE), OUT_SCALE)
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, X_SCALE)), 0.998)


def assert_front_ends_run_it(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Prepared and converted in both front ends: within a step of the one before, and equal in ONNX Runtime."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for prepare, convert in FRONT_ENDS.values():
        model = Stubbed(module).eval()
        prepared = prepare(model, [x])
        converted = convert(prepared)
        y, y_fq, y_q = model(x), prepared(x), converted(x)
        step = float(x.abs().max()) / 100
        assert float((y - y_fq).abs().max()) < 2 * step
        assert float((y_fq - y_q).abs().max()) < 1.01 * step
        assert_equals_onnx(converted, x)
