"""What the tests of ops that keep the scale share: moved codes, rounding to the grid, both front ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from profiler.quant import QTensor
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.spatial_gemm_cases import Stubbed
from tests.quant.stages import FRONT_ENDS

SCALE = 0.3


class Call(nn.Module):
    """A function call as the code of a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def assert_moves_codes(op: Callable[[Any], Any], shape: tuple[int, ...], dtype: str = "qint8") -> None:
    """The op on codes equals torch's op on the same numbers in float64, in both forms, at the same scale."""
    x_q = codes(shape, dtype=dtype)
    y, y_fq = op(quantized(x_q, SCALE, dtype)), op(on_grid(x_q, SCALE, dtype))
    expected = op(x_q.double()).to(x_q.dtype)
    for result in (y, y_fq):
        assert isinstance(result, QTensor)
        assert (result.qdtype, float(result.scale)) == (dtype, float(torch.tensor(SCALE)))
    assert y.plain.dtype == x_q.dtype
    assert torch.equal(y.plain, expected)
    assert torch.equal(y_fq.int_repr(), expected)


def assert_rounds_to_the_grid(op: Callable[[Any], Any], shape: tuple[int, ...], dtype: str = "qint8") -> None:
    """Both forms are equal, and the float64 op on codes rounded; near a tie one code to either side."""
    x_q = codes(shape, dtype=dtype)
    y, y_fq = op(quantized(x_q, SCALE, dtype)), op(on_grid(x_q, SCALE, dtype))
    assert isinstance(y, QTensor)
    assert isinstance(y_fq, QTensor)
    assert torch.equal(y.plain, y_fq.int_repr())
    assert torch.equal(y_fq.plain, y.dequantize())
    real = op(x_q.double())
    apart = (y.plain.double() - rounded(real, dtype)).abs()
    is_tie = (real - real.floor() - 0.5).abs() < 2**-6
    assert float(apart.max()) <= 1
    assert bool((apart == 0).logical_or(is_tie).all())


def rounded(y: Tensor, dtype: str) -> Tensor:
    bits = {"qint8": 8, "qint16": 16}[dtype]
    return y.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def in_calibration(x: Tensor) -> QTensor:
    """Values as a calibrating model passes them on: with a scale, not rounded."""
    return QTensor.wrap(x, torch.tensor(SCALE), "qint8", is_rounded=False)


def assert_front_ends_run(op: nn.Module, shape: tuple[int, ...]) -> None:
    """The prepared model predicts the converted one exactly, and so does ONNX Runtime; all are near float."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for prepare, convert in FRONT_ENDS.values():
        model = Stubbed(op).eval()
        prepared = prepare(model, [x])
        converted = convert(prepared)
        y, y_fq, y_q = model(x), prepared(x), converted(x)
        step = float(x.abs().max()) / 127
        assert float((y - y_fq).abs().max()) < 2 * step
        assert torch.allclose(y_q, y_fq, rtol=1e-6, atol=0)
        assert_equals_onnx(converted, x)


def assert_gradient_is_that_of_the_op(op: Callable[[Any], Any], shape: tuple[int, ...]) -> None:
    """Straight through the rounding, where nothing saturates."""
    x_q = codes(shape) // 2
    plain = (x_q.float() * SCALE).requires_grad_()
    op(QTensor.wrap(plain * 1, torch.tensor(SCALE), "qint8")).dequantize().square().sum().backward()
    other = plain.detach().clone().requires_grad_()
    y_q = op(quantized(x_q, SCALE)).dequantize()
    (op(other) * 2 * y_q).sum().backward()
    assert plain.grad is not None
    torch.testing.assert_close(plain.grad, other.grad)
