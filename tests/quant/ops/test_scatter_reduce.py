from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from profiler.quant import QTensor, quantize
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, check_in_networks, function_forms, real

X_SCALE, SRC_SCALE, OUT_SCALE = 0.03, 0.017, 0.09
REDUCTIONS = ("sum", "mean", "amax", "amin", "prod")
JOINED: dict[str, Any] = {"sum": np.sum, "mean": np.mean, "amax": np.max, "amin": np.min, "prod": np.prod}


def indices(shape: tuple[int, ...], count: int, seed: int = 2) -> Tensor:
    return torch.randint(max(count, 1), shape, generator=torch.Generator().manual_seed(seed))


def truth(x: np.ndarray, dim: int, index: np.ndarray, src: np.ndarray, reduce: str, include_self: bool) -> np.ndarray:
    """The elements that go to each place, collected in lists and joined in float64."""
    found: dict[tuple[int, ...], list[float]] = {}
    for place in np.ndindex(*index.shape):
        target = list(place)
        target[dim] = int(index[place])
        found.setdefault(tuple(target), []).append(float(src[place]))
    result = x.copy()
    for target_place, values in found.items():
        own = [float(x[target_place])] if include_self else []
        result[target_place] = JOINED[reduce](own + values)
    return result


def expected_codes(values: np.ndarray, scale: float, dtype: str) -> np.ndarray:
    """The formula of quantization on the real result in float32."""
    steps = values.astype(np.float32) * (np.float32(1) / np.float32(scale))
    return np.clip(np.rint(steps), *RANGES[dtype]).astype(np.int64)


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize(
    ("x_shape", "dim", "index_shape", "src_shape"),
    [
        ((5, 3), 0, (9, 3), (9, 3)),
        ((5, 3), 1, (4, 7), (6, 8)),
        ((4,), 0, (0,), (3,)),
        ((2, 4, 3), -2, (2, 3, 3), (2, 9, 3)),
    ],
)
def test_scatter_reduce_equals_float64(
    dtype: str, reduce: str, include_self: bool, x_shape: Any, dim: int, index_shape: Any, src_shape: Any
) -> None:
    x_q, src_q = codes(x_shape, 0, dtype), codes(src_shape, 1, dtype)
    index, shrink = indices(index_shape, x_shape[dim]), 1.0 if dtype == "qint8" else 2.0**-8
    x_scale, src_scale, out_scale = X_SCALE * shrink, SRC_SCALE * shrink, OUT_SCALE * shrink
    _, integer = function_forms("scatter_reduce", out_scale, dtype)
    x, src = quantized(x_q, x_scale, dtype), quantized(src_q, src_scale, dtype)
    result = integer(x, dim, index, src, reduce, include_self=include_self)
    values = truth(real(x_q, x_scale), dim % len(x_shape), index.numpy(), real(src_q, src_scale), reduce, include_self)
    assert_codes_equal(result, expected_codes(values, out_scale, dtype), dtype)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("scales", [(0.03, 0.017, 0.0912871), (0.03, 0.03, 0.03), (0.03, 0.02, 0.05)])
def test_scatter_reduce_fake_quant_equals_integer_form(
    reduce: str, include_self: bool, scales: tuple[float, float, float]
) -> None:
    x_q, src_q = codes((60, 30)), codes((200, 30), 1)
    index = indices((200, 30), 60)
    fake, integer = function_forms("scatter_reduce", scales[2])
    y_fq = fake(on_grid(x_q, scales[0]), 0, index, on_grid(src_q, scales[1]), reduce, include_self=include_self)
    y_q = integer(quantized(x_q, scales[0]), 0, index, quantized(src_q, scales[1]), reduce, include_self=include_self)
    assert_nearly_same_codes(y_fq, y_q, 1.0)


@settings(max_examples=20, deadline=None)
@given(
    x_shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    count=st.integers(0, 6),
    exponent=st.floats(-8, 8),
    reduce=st.sampled_from(["sum", "mean", "amax", "amin"]),
    include_self=st.booleans(),
)
def test_scatter_reduce_any_shape_and_scale(
    x_shape: list[int], count: int, exponent: float, reduce: str, include_self: bool
) -> None:
    src_shape = (count if x_shape[0] else 0, *x_shape[1:])
    scale = float(np.float32(10.0**exponent))
    x_q, src_q = codes(tuple(x_shape)), codes(src_shape, 1)
    index = indices(src_shape, x_shape[0])
    _, integer = function_forms("scatter_reduce", scale * 1.7)
    x, src = quantized(x_q, scale), quantized(src_q, scale * 0.6)
    result = integer(x, 0, index, src, reduce, include_self=include_self)
    values = truth(real(x_q, scale), 0, index.numpy(), real(src_q, scale * 0.6), reduce, include_self)
    apart = np.abs(result.plain.numpy() - expected_codes(values, scale * 1.7, "qint8"))
    assert apart.size == 0 or apart.max() <= 1
    assert apart.size == 0 or (apart == 0).mean() >= 0.99


def test_scatter_reduce_into_new_zeros_needs_no_scale_of_theirs() -> None:
    src_q, index = codes((9, 3)), indices((9, 3), 5)
    fake, integer = function_forms("scatter_reduce", 0.04)
    zeros = torch.zeros(5, 3)
    y_q = integer(zeros, 0, index, quantized(src_q, 0.03), "mean", include_self=False)
    values = truth(zeros.double().numpy(), 0, index.numpy(), real(src_q, 0.03), "mean", False)
    assert_codes_equal(y_q, expected_codes(values, 0.04, "qint8"))
    assert_nearly_same_codes(fake(zeros, 0, index, on_grid(src_q, 0.03), "mean", include_self=False), y_q, 1.0)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_scatter_reduce_gradients_are_those_of_the_float_function(reduce: str) -> None:
    index = torch.tensor([[1, 1], [1, 3], [0, 1]])
    fake, _ = function_forms("scatter_reduce", 0.01, "qint16")
    fake.train()
    fake.activation_post_process.disable_observer()
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor(0.01)
    grid = [(torch.randn(n, 2, generator=generator) * 100).round() * scale for n in (4, 3)]
    x, src = (t.clone().requires_grad_() for t in grid)
    y = fake(QTensor.wrap(x, scale, "qint16"), 0, index, QTensor.wrap(src, scale, "qint16"), reduce)
    twins = [t.clone().requires_grad_() for t in grid]
    expected = torch.scatter_reduce(twins[0], 0, index, twins[1], reduce)
    weight = torch.randn(4, 2, generator=generator)
    (y.plain * weight).sum().backward()
    (expected * weight).sum().backward()
    for leaf, twin in zip((x, src), twins, strict=True):
        torch.testing.assert_close(leaf.grad, twin.grad)


@pytest.mark.parametrize("reduce", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("include_self", [True, False])
def test_scatter_reduce_in_networks(reduce: str, include_self: bool) -> None:
    def body(module: Any, x: Any) -> Any:
        index = module.positions.view(1, 3, 1, 1).expand(2, 3, 6, 6)
        return x.scatter_reduce(1, index, x[:, :3] * 0.5, reduce, include_self=include_self)

    check_in_networks(body, "scatter_reduce_0")


class GraphConvolution(nn.Module):
    """Two layers that collect what the neighbours send into tensors that the forward makes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Linear(6, 12), nn.Linear(12, 3), kind

    def collect(self, x: Tensor, edges: Tensor) -> Tensor:
        messages = x[edges[0]]
        places = edges[1].unsqueeze(-1).expand_as(messages)
        if self.kind == "index_add_":
            total = torch.zeros(x.shape[0], x.shape[1])
            total.index_add_(0, edges[1], messages)
            return total
        if self.kind == "scatter_add_":
            return torch.zeros_like(x).scatter_add_(0, places, messages)
        return x.new_zeros(x.shape).scatter_reduce_(0, places, messages, self.kind, include_self=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(torch.relu(self.collect(self.first(x), edges)))


@pytest.mark.parametrize("frontend", ["auto", "record"])
@pytest.mark.parametrize("kind", ["index_add_", "scatter_add_", "mean", "amax"])
def test_graph_convolution_collects_messages_in_integers(kind: str, frontend: str) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(15, 6), indices((2, 40), 15, seed)) for seed in range(3)]
    stages = quantize(GraphConvolution(kind), batches, frontend=frontend)
    assert not [e for e in stages.effects[1:] if e.reason]
    with torch.no_grad():
        expected, actual = stages.float(*batches[0]), stages.quantized(*batches[0])
        assert torch.allclose(stages.calib(*batches[0]), actual, atol=1e-5)
    assert float((actual - expected).norm() / expected.norm()) < 0.04
    assert_equals_onnx(stages.quantized, *batches[0])
