from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from profiler.quant import quantize
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, check_gradients, check_in_networks, function_forms, real


def truth(a: np.ndarray, b: np.ndarray, dim: int, eps: float) -> np.ndarray:
    """Product over lengths in float64, lengths at least eps."""
    a, b = np.broadcast_arrays(a, b)
    lengths = [np.maximum(np.sqrt((v * v).sum(dim)), eps) for v in (a, b)]
    return (a * b).sum(dim) / (lengths[0] * lengths[1])


def expected_codes(values: np.ndarray, scale: float, dtype: str = "qint8") -> np.ndarray:
    return np.clip(np.rint(values / np.float64(np.float32(scale))), *RANGES[dtype]).astype(np.int64)


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize(
    ("a_shape", "b_shape", "dim", "eps"),
    [
        ((40, 16), (40, 16), 1, 1e-8),
        ((30, 1, 16), (1, 20, 16), -1, 1e-8),
        ((3, 8, 50), (8, 1), 1, 2.0),
        ((7,), (7,), 0, 1e-8),
        ((0, 4), (0, 4), 1, 1e-8),
    ],
)
def test_cosine_similarity_equals_float64_and_fake_quant(
    dtype: str, a_shape: Any, b_shape: Any, dim: int, eps: float
) -> None:
    a_q, b_q = codes(a_shape, 0, dtype), codes(b_shape, 1, dtype)
    out_scale = 0.9 / (127.5 if dtype == "qint8" else 32767.5)
    fake, integer = function_forms("cosine_similarity", out_scale, dtype)
    y_q = integer(quantized(a_q, 0.03, dtype), quantized(b_q, 0.02, dtype), dim, eps)
    assert_codes_equal(y_q, expected_codes(truth(real(a_q, 0.03), real(b_q, 0.02), dim, eps), out_scale, dtype), dtype)
    if y_q.numel():
        y_fq = fake(on_grid(a_q, 0.03, dtype), on_grid(b_q, 0.02, dtype), dim, eps)
        assert_nearly_same_codes(y_fq, y_q, 0.999 if dtype == "qint8" else 0.9)


def test_cosine_similarity_beside_zeros_is_zero() -> None:
    zeros, b_q = torch.zeros(3, 5, dtype=torch.int8), codes((3, 5))
    for eps in (1e-8, 0.0):
        fake, integer = function_forms("cosine_similarity", 0.01)
        y_q = integer(quantized(zeros, 0.03), quantized(b_q, 0.02), -1, eps)
        assert int(y_q.plain.abs().max()) == 0
        assert_nearly_same_codes(fake(on_grid(zeros, 0.03), on_grid(b_q, 0.02), -1, eps), y_q, 1.0)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    dim=st.integers(0, 2),
    exponents=st.tuples(st.floats(-8, 8), st.floats(-8, 8)),
)
def test_cosine_similarity_any_shape_and_scale(shape: list[int], dim: int, exponents: tuple[float, float]) -> None:
    dim %= len(shape)
    a_q, b_q = codes(tuple(shape)), codes(tuple(shape), 1)
    a_scale, b_scale = (float(np.float32(10.0**e)) for e in exponents)
    _, integer = function_forms("cosine_similarity", 0.0079)
    y_q = integer(quantized(a_q, a_scale), quantized(b_q, b_scale), dim)
    apart = np.abs(y_q.plain.numpy() - expected_codes(truth(real(a_q, a_scale), real(b_q, b_scale), dim, 1e-8), 0.0079))
    assert apart.size == 0 or apart.max() <= 1
    assert apart.size == 0 or (apart == 0).mean() >= 0.99


def test_cosine_similarity_gradients_are_those_of_the_float_function() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    check_gradients(F.cosine_similarity, "cosine_similarity", a, b, dim=1)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: F.cosine_similarity(x, m.shift - x * 0.3, 1),
        lambda m, x: F.cosine_similarity(x[:, :, None], x[:, None], dim=-1, eps=1e-6),
    ],
)
def test_cosine_similarity_in_networks(body: Any) -> None:
    check_in_networks(body, "cosine_similarity_0")


class Twins(nn.Module):
    """Two towers and how alike they are."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.alike = nn.Linear(6, 12), nn.Linear(6, 12), nn.CosineSimilarity(-1, 1e-6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.alike(self.left(x).unsqueeze(1), self.right(y))


@pytest.mark.parametrize("frontend", ["fx", "record"])
def test_cosine_similarity_module_is_quantized(frontend: str) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(5, 6), torch.randn(7, 6)) for _ in range(3)]
    stages = quantize(Twins(), batches, frontend=frontend)
    assert not [e for e in stages.effects[1:] if e.reason]
    with torch.no_grad():
        expected, actual = stages.float(*batches[0]), stages.quantized(*batches[0])
    assert float((actual - expected).abs().max()) < 0.03
    assert_equals_onnx(stages.quantized, *batches[0], num_codes=5)


def test_cosine_similarity_module_binds_its_arguments() -> None:
    a_q, b_q = codes((4, 6)), codes((4, 6), 1)
    _, integer = forms_of(nn.CosineSimilarity(0, 0.5), 0.0079)
    y_q = integer(quantized(a_q, 0.03), quantized(b_q, 0.02))
    assert_codes_equal(y_q, expected_codes(truth(real(a_q, 0.03), real(b_q, 0.02), 0, 0.5), 0.0079))
