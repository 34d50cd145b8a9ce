"""A fused add whose operands broadcast: kernels, float carrier, fake quant and float against the numeric model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from profiler.quant import DeQuantStub, QuantStub
from profiler.quant.ops.epilogue import Epilogue, expands_to
from profiler.quant.ops.gemm import IntegerGemm
from tests.quant.integer_reference import requantized
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.gemm_cases import accumulator
from tests.quant.stages import FRONT_ENDS
from tests.quant.test_integer_kernels import Recorded

X_SCALE, OTHER_SCALE = 0.017, 0.03
Shape = tuple[int, ...]

LINEAR = [  # input, other operand of Linear(6, 8)
    ((4, 1, 6), (4, 8)), ((4, 1, 6), (1, 4, 8)), ((1, 4, 6), (4, 1, 8)), ((6,), (1, 8)), ((6,), (3, 8)), ((6,), (8,)),
    ((2, 5, 6), (5, 8)), ((2, 5, 6), (2, 1, 8)), ((8, 6), (3, 8, 8)), ((3, 6), (2, 3, 8)), ((3, 6), (8,)),
    ((3, 6), (1,)), ((3, 6), ()), ((3, 6), (3, 1)), ((1, 6), (5, 8)), ((5, 6), (1, 1, 5, 8)), ((5, 6), (0, 5, 8)),
    ((1, 6), (0, 8)), ((2, 3, 4, 6), (3, 1, 8)),
]  # fmt: skip
CONV = [  # input, other operand of Conv2d(4, 8, 3, padding=1)
    ((4, 5, 5), (1, 8, 5, 5)), ((4, 5, 5), (3, 8, 5, 5)), ((4, 5, 5), (8, 1, 1)), ((4, 5, 5), (5,)),
    ((2, 4, 5, 5), (5, 5)), ((2, 4, 5, 5), (5,)), ((2, 4, 5, 5), (8, 5, 5)), ((2, 4, 5, 5), (8, 1, 1)),
    ((2, 4, 5, 5), (1, 8, 5, 5)), ((2, 4, 5, 5), (2, 1, 1, 5)), ((1, 4, 5, 5), (2, 8, 5, 5)), ((2, 4, 5, 5), ()),
    ((2, 4, 5, 5), (3, 1, 8, 5, 5)), ((2, 4, 1, 1), (2, 8, 5, 5)), ((1, 4, 5, 5), (1, 1, 8, 5, 5)),
]  # fmt: skip
CONV1D = [((2, 4, 5), (8, 5)), ((4, 5), (2, 8, 5)), ((4, 5), (1, 8, 5)), ((2, 4, 5), (5,)), ((2, 4, 5), (2, 1, 5))]
CASES = [
    *(("linear", *shapes) for shapes in LINEAR),
    *(("conv", *shapes) for shapes in CONV),
    *(("conv1d", *shapes) for shapes in CONV1D),
]


def module_of(name: str) -> Any:
    torch.manual_seed(0)
    if name == "linear":
        return nn.Linear(6, 8)
    return nn.Conv2d(4, 8, 3, padding=1) if name == "conv" else nn.Conv1d(4, 8, 3, padding=1)


def expected(module: Any, x_q: Tensor, other_q: Tensor, out_scale: float, activation: str) -> np.ndarray:
    """Codes by the numeric model, numpy broadcasting."""
    is_single = isinstance(module, (nn.Conv1d, nn.Conv2d)) and x_q.dim() == len(module.kernel_size) + 1
    acc, acc_scale = accumulator(module, x_q[None] if is_single else x_q, X_SCALE)
    acc_scale = np.broadcast_to(acc_scale, acc.shape)
    acc, acc_scale = (acc[0], acc_scale[0]) if is_single else (acc, acc_scale)
    multiplier = (np.float64(np.float32(OTHER_SCALE)) / acc_scale.astype(np.float64)).astype(np.float32)
    acc = acc + np.rint(other_q.numpy().astype(np.float32) * multiplier).astype(np.int64)
    acc = np.maximum(acc, 0) if activation else acc
    y_q = requantized(acc, acc_scale / np.float32(out_scale))
    limit = np.rint(np.float32(6) / np.float32(out_scale)).astype(np.int64)
    return np.minimum(y_q, limit) if activation == "relu6" else y_q


def check(module: Any, x_shape: Shape, other_shape: Shape, activation: str = "") -> None:
    """All forms of `module(x) + other`."""
    x_q, other_q = codes(x_shape), codes(other_shape, seed=1)
    real = module(x_q * X_SCALE).detach() + other_q * OTHER_SCALE
    out_scale = float(real.abs().max()) / 127 if real.numel() else 0.05
    real = {"": real, "relu": real.relu(), "relu6": real.clamp(0, 6)}[activation]
    fake, _ = forms_of(module, out_scale)
    fake.epilogue = Epilogue(True, activation)
    integer = fake.to_integer()
    truth = expected(module, x_q, other_q, out_scale, activation)
    inputs = quantized(x_q, X_SCALE), quantized(other_q, OTHER_SCALE)
    y = integer(*inputs)
    assert tuple(y.shape) == tuple(real.shape)
    assert_codes_equal(y, truth)
    with Recorded():
        assert_codes_equal(integer(*inputs), truth)
    if real.numel():
        y_fq = fake(on_grid(x_q, X_SCALE), on_grid(other_q, OTHER_SCALE))
        assert_nearly_same_codes(y_fq, y, share=0.99 - 1 / real.numel())
        assert float((y.dequantize() - real).abs().max()) <= 0.5 * out_scale + 2.5 * out_scale


@pytest.mark.parametrize("activation", ["", "relu", "relu6"])
@pytest.mark.parametrize(("name", "x_shape", "other_shape"), CASES, ids=str)
def test_fused_add_of_broadcasting_shapes(name: str, x_shape: Shape, other_shape: Shape, activation: str) -> None:
    check(module_of(name), x_shape, other_shape, activation)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["linear", "conv", "conv1d"]), data=st.data())
def test_fused_add_of_any_shapes(name: str, data: st.DataObject) -> None:
    module = module_of(name)
    size, tail = st.integers(1, 3), {"linear": (6,), "conv": (4, 3, 2), "conv1d": (4, 3)}[name]
    lead = data.draw(st.lists(size, max_size=3 if name == "linear" else 1))
    product = tuple(module(torch.zeros(*lead, *tail)).shape)
    whole = [*data.draw(st.lists(size, max_size=2)), *product]
    kept = data.draw(st.integers(0, len(whole)))
    other = tuple(data.draw(st.sampled_from([n, 1])) for n in whole[len(whole) - kept :])
    assume(len(np.broadcast_shapes(product, other)) <= 5)
    check(module, (*lead, *tail), other)


def test_an_operand_that_cannot_be_broadcast_is_refused_by_torch() -> None:
    fake, _ = forms_of(module_of("linear"), 0.05)
    fake.epilogue = Epilogue(True)
    with pytest.raises(RuntimeError, match="must match the size"):
        fake.to_integer()(quantized(codes((2, 6)), X_SCALE), quantized(codes((3, 8)), OTHER_SCALE))


@settings(max_examples=100, deadline=None)
@given(theirs=st.lists(st.integers(1, 3), max_size=4), shape=st.lists(st.integers(1, 3), max_size=4))
def test_expands_to_is_broadcasting_that_keeps_the_shape(theirs: list[int], shape: list[int]) -> None:
    try:
        keeps = tuple(np.broadcast_shapes(tuple(theirs), tuple(shape))) == tuple(shape)
    except ValueError:
        keeps = False
    assert expands_to(theirs, shape) is keeps


class AddsTable(nn.Module):
    """The product plus a constant of a given shape, behind a stub of its own."""

    def __init__(self, name: str, other_shape: Shape) -> None:
        super().__init__()
        self.x, self.t, self.out = QuantStub(), QuantStub(), DeQuantStub()
        self.product = module_of(name)
        self.register_buffer("table", torch.randn(other_shape))

    def forward(self, x: Tensor) -> Tensor:
        table = self.t(self.table)  # before the product, which then takes the add
        y: Tensor = self.out(self.product(self.x(x)) + table)
        return y


@pytest.mark.parametrize(("name", "x_shape", "other_shape"), [
    ("linear", (4, 1, 6), (4, 8)), ("linear", (2, 5, 6), (5, 8)), ("linear", (8, 6), (3, 8, 8)),
    ("conv", (2, 4, 5, 5), (5, 5)), ("conv", (4, 5, 5), (1, 8, 5, 5)), ("conv", (2, 4, 5, 5), (8, 1, 1)),
])  # fmt: skip
def test_add_that_fx_fuses_equals_float_and_onnx(name: str, x_shape: Shape, other_shape: Shape) -> None:
    model, x = AddsTable(name, other_shape).eval(), torch.randn(x_shape)
    real = model(x).detach()
    stage, convert = FRONT_ENDS["fx"]
    integer = convert(stage(model, [x]))
    assert [m.epilogue.has_add for m in integer.modules() if isinstance(m, IntegerGemm)] == [True]
    y = integer(x)
    assert y.shape == real.shape
    assert float((y - real).abs().max()) <= 0.05 * float(real.abs().max())
    assert_equals_onnx(integer, x)
