"""The 8-bit kernels: the same integers as float-carried sums and as int64 arithmetic, at every bound they rely on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.quant import QTensor, integer_kernels
from profiler.quant.integer_kernels import Geometry, exact_sums, kernels_are_exact
from profiler.quant.ops.epilogue import Epilogue
from tests.quant.op_forms import codes, fake_quant_of, forms_of, quantized

needs_kernels = pytest.mark.skipif(not kernels_are_exact(), reason="this CPU or torch has no exact 8-bit kernels")


class Recorded(TorchDispatchMode):
    """Somebody records the operators: the float carrier runs, whose bound is checked elsewhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def both_ways(integer: Any, *inputs: QTensor) -> tuple[Tensor, Tensor]:
    """Result on the kernels, then on the float carrier."""
    fast = integer(*inputs)
    (plan,) = integer._plans.by_scale.values()
    assert plan.fast is not None
    with Recorded():
        slow = integer(*inputs)
    return fast, slow


def assert_same(fast: Tensor, slow: Tensor) -> None:
    assert type(fast) is type(slow)
    fast, slow = (t.plain if isinstance(t, QTensor) else t for t in (fast, slow))
    assert fast.dtype == slow.dtype
    assert torch.equal(fast, slow)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    groups=st.sampled_from([1, 1, 2, 4]),
    factors=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dtype=st.sampled_from(["qint8", "qint8", "qint16"]),
    activation=st.sampled_from(["", "relu", "relu6"]),
    out_scale=st.sampled_from([None, 0.01, 0.5, 30.0]),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_conv2d_on_kernels_equals_carrier(
    groups: int, factors: Any, kernel: Any, stride: Any, dilation: Any, padding: Any, dtype: str, activation: str,
    out_scale: float | None, has_bias: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    module = nn.Conv2d(groups * factors[0], groups * factors[1], kernel, stride, padding, dilation, groups, has_bias)
    fake = fake_quant_of(module, out_scale, dtype)
    fake.epilogue = Epilogue(activation=activation)
    x = quantized(codes((2, groups * factors[0], 9, 8), seed, dtype), 0.03, dtype)
    assert_same(*both_ways(fake.to_integer(), x))


@needs_kernels
@pytest.mark.parametrize("make", [
    lambda: (nn.Conv1d(6, 5, 3, padding=1), (2, 6, 11)), lambda: (nn.Conv1d(6, 5, 3, padding="same"), (6, 11)),
    lambda: (nn.Conv2d(6, 5, 3, padding="valid"), (6, 11, 7)), lambda: (nn.Linear(24, 10), (24,)),
    lambda: (nn.Linear(24, 1000), (3, 700, 24)), lambda: (nn.Linear(24, 10, bias=False), (2, 3, 5, 24)),
    lambda: (nn.Conv2d(16, 96, 1), (3, 16, 112, 112)),
])  # fmt: skip
@pytest.mark.parametrize("out_scale", [None, 0.05])
@pytest.mark.parametrize("has_add", [False, True])
def test_other_ops_and_large_images_on_kernels_equal_carrier(make: Any, out_scale: float | None, has_add: bool) -> None:
    module, shape = make()
    fake = fake_quant_of(module, out_scale)
    fake.epilogue = Epilogue(has_add=has_add, activation="relu" if has_add else "")
    x = codes(shape)
    other = [quantized(codes(tuple(module(x.float()).shape), 1), 0.07)] if has_add else []
    assert_same(*both_ways(fake.to_integer(), quantized(x, 0.03), *other))


@needs_kernels
@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("fan_in", [1020, 1032, 1100, 2048, 2064, 5000, 8000])
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_sums_beyond_float32_are_rounded_once(value: int, fan_in: int, dtype: str) -> None:
    module = nn.Linear(fan_in, 7)
    with torch.no_grad():
        module.weight.copy_(torch.sign(torch.randn(7, fan_in)) * 0.5)
        module.weight[0] = 0.5
        module.weight[1] = -0.5
        module.bias.copy_(torch.linspace(-100, 100, 7))
    x = torch.full((5, fan_in), value * (1 if dtype == "qint8" else 257))
    x[1:] = codes((4, fan_in), dtype=dtype)
    _, integer = forms_of(module, None, dtype)
    x_q = quantized(x.to(torch.int8 if dtype == "qint8" else torch.int16), 0.011, dtype)
    y = integer(x_q)
    (plan,) = integer._plans.by_scale.values()
    bias = np.rint(module.bias.detach().double().numpy() / plan.acc_scale.double().numpy())
    acc = x_q.plain.numpy().astype(np.int64) @ integer.weight.numpy().astype(np.int64).T + bias.astype(np.int64)
    np.testing.assert_array_equal(y.detach().numpy(), acc.astype(np.float32) * plan.acc_scale.numpy())
    assert (plan.fast is not None) == (fan_in * 128 * (128 if dtype == "qint8" else 255) < 8 * 2**24)


@needs_kernels
def test_bias_of_a_dead_channel_leaves_the_others_on_the_kernels() -> None:
    module = nn.Conv2d(8, 6, 3, padding=1)
    with torch.no_grad():
        module.weight[2] = 0
        module.bias[2] = 0.7
    fake = fake_quant_of(module, 0.01)
    fake.epilogue = Epilogue(has_add=True, activation="relu6")
    x, other = quantized(codes((2, 8, 9, 9)), 0.02), quantized(codes((2, 6, 9, 9), 1), 0.03)
    integer = fake.to_integer()
    assert_same(*both_ways(integer, x, other))
    (plan,) = integer._plans.by_scale.values()
    assert not plan.fast.sums.is_single


def test_without_exact_kernels_the_carrier_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = nn.Conv2d(8, 6, 3, padding=1), quantized(codes((2, 8, 9, 9)), 0.02)
    expected = forms_of(module, 0.01)[1](x)
    monkeypatch.setattr(integer_kernels, "kernels_are_exact", lambda: False)
    integer = forms_of(module, 0.01)[1]
    assert_same(integer(x), expected)
    assert next(iter(integer._plans.by_scale.values())).fast is None


def test_probe_finds_a_saturating_or_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    product = integer_kernels._Product.__call__
    monkeypatch.setattr(integer_kernels._Product, "__call__", lambda self, x: product(self, x).clamp_max(32767.0))
    assert not kernels_are_exact.__wrapped__()

    def missing(*_: Any) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(integer_kernels._Product, "__init__", missing)
    assert not kernels_are_exact.__wrapped__()


@needs_kernels
@pytest.mark.parametrize("make", [nn.Conv3d, nn.ConvTranspose2d])
def test_ops_that_are_no_2d_convolution_have_no_fast_plan(make: Any) -> None:
    module = make(4, 4, 3)
    _, integer = forms_of(module, 0.01)
    integer(quantized(codes((2, 4, 6, 6, 6)[: module.weight.dim()]), 0.02))
    assert next(iter(integer._plans.by_scale.values())).fast is None


@needs_kernels
def test_exact_sums_refuses_more_than_eight_parts_and_split_groups() -> None:
    worst = torch.full((2, 9000, 1, 1), 127, dtype=torch.int8)
    assert exact_sums(worst, None, Geometry(), torch.int8, 0.0) is None
    assert exact_sums(worst[:, :1500], None, Geometry(), torch.int8, 0.0) is not None
    assert exact_sums(worst[:, :1500], None, Geometry(groups=2), torch.int8, 0.0) is None


def test_codes_of_images_can_be_viewed_and_real_values_are_contiguous() -> None:
    _, integer = forms_of(nn.Conv2d(8, 6, 3, padding=1), 0.01)
    y = integer(quantized(codes((2, 8, 9, 9)), 0.02))
    assert torch.equal(y.view(2, -1).plain, y.plain.reshape(2, -1))
    assert y.dequantize().is_contiguous()
