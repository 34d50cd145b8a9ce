"""What the tests of arithmetic operators share: every pair of codes, networks in both front ends, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from profiler.quant import DeQuantStub, QTensor, QuantStub
from profiler.quant.ops.functional import FunctionOp
from tests.quant.integer_reference import INT8, INT16
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
from tests.quant.stages import FRONT_ENDS

S = np.float32
RANGES = {"qint8": INT8, "qint16": INT16}
# (dtype of x, dtype of the other operand, dtype of the output)
DTYPES = [(x, y, out) for x in RANGES for y in RANGES for out in RANGES]
SHAPES = [((2, 3, 4), (3, 1)), ((5,), (4, 5)), ((0, 3), (3,)), ((1,), (1,)), ((), (2, 2)), ((2, 0), (1, 1))]
SHAPE = (2, 4, 6, 6)
Body = Callable[[Any, Any], Any]


def every_pair() -> tuple[Tensor, Tensor]:
    """All 65536 pairs of int8 codes, `[256, 256]` each."""
    x_q = torch.arange(-128, 128, dtype=torch.int8)[:, None].expand(256, 256).contiguous()
    return x_q, x_q.T.contiguous()


def function_forms(name: str, out_scale: float | None, dtype: str = "qint8") -> tuple[Any, Any]:
    """Fake-quant and integer form of a function by its canonical name."""
    return forms_of(FunctionOp(name, None), out_scale, dtype)


def rounded(steps: Any, dtype: str = "qint8") -> np.ndarray:
    """Codes of float32 values in output steps."""
    return np.clip(np.rint(np.asarray(steps, np.float32)), *RANGES[dtype]).astype(np.int64)


def real(x_q: Tensor, scale: float) -> np.ndarray:
    """What codes stand for, in float64."""
    return x_q.numpy().astype(np.float64) * np.float64(S(scale))


def check_every_pair(
    name: str,
    integer_truth: Callable[..., np.ndarray],
    real_truth: Callable[[np.ndarray, np.ndarray], np.ndarray],
    scales: Iterable[tuple[float, float, float]],
    **kwargs: Any,
) -> None:
    """All pairs of codes: integers exactly, fake quant against float64 and against the integers.

    Args:
        name: canonical function name.
        integer_truth: `(x_q, s_x, y_q, s_y, s_out, dtype) -> codes` on numpy float32 and numbers.
        real_truth: the function in float64.
        scales: of x, of the other operand and of the output.
        kwargs: of the function.
    """
    x_q, y_q = every_pair()
    for x_scale, y_scale, out_scale in scales:
        fake, integer = function_forms(name, out_scale)
        result = integer(quantized(x_q, x_scale), quantized(y_q, y_scale), **kwargs)
        given = (x_q.numpy().astype(S), S(x_scale), y_q.numpy().astype(S), S(y_scale), S(out_scale), "qint8")
        assert_codes_equal(result, integer_truth(*given))
        y_fq = fake(on_grid(x_q, x_scale), on_grid(y_q, y_scale), **kwargs)
        expected = fake_quantized_float64(real_truth(real(x_q, x_scale), real(y_q, y_scale)), out_scale)
        assert_within_one_step(y_fq, expected, float(S(out_scale)))
        assert_nearly_same_codes(y_fq, result)


def check_dtypes_and_shapes(
    name: str,
    integer_truth: Callable[..., np.ndarray],
    dtypes: tuple[str, str, str],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    scales: tuple[float, float, float],
    seed: int = 0,
) -> None:
    """Mixed dtypes, broadcast shapes and any scales: integers exactly."""
    x_q, y_q = codes(shapes[0], seed, dtypes[0]), codes(shapes[1], seed + 1, dtypes[1])
    _, integer = function_forms(name, scales[2], dtypes[2])
    result = integer(quantized(x_q, scales[0], dtypes[0]), quantized(y_q, scales[1], dtypes[1]))
    given = (x_q.numpy().astype(S), S(scales[0]), y_q.numpy().astype(S), S(scales[1]), S(scales[2]), dtypes[2])
    assert_codes_equal(result, integer_truth(*given), dtypes[2])


def check_gradients(call: Callable[..., Any], name: str, *operands: Tensor, **kwargs: Any) -> None:
    """Inside the range the gradient of the fake-quant form is that of the float function."""
    fake, _ = function_forms(name, 0.01, "qint16")
    fake.train()
    fake.activation_post_process.disable_observer()
    leaves = [t.clone().requires_grad_() for t in operands]
    y = fake(*(QTensor.wrap(t, torch.tensor(0.01), "qint16") for t in leaves), **kwargs)
    twins = [t.clone().requires_grad_() for t in operands]
    expected = call(*twins, **kwargs)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    (y.plain * weight).sum().backward()
    (expected * weight).sum().backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        assert leaf.grad is not None
        assert twin.grad is not None
        torch.testing.assert_close(leaf.grad, twin.grad)


class Between(nn.Module):
    """A function after a convolution, between stubs, with constants at hand."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.quant, self.dequant, self.conv = QuantStub(), DeQuantStub(), nn.Conv2d(3, 4, 1)
        self.gain, self.temperature = nn.Parameter(torch.rand(4, 1, 1) + 0.5), nn.Parameter(torch.tensor(1.7))
        self.register_buffer("shift", torch.randn(1, 4, 1, 1))
        self.register_buffer("keep", torch.tensor([True, False, True, True]).view(1, 4, 1, 1))
        self.register_buffer("positions", torch.tensor([1, 0, 2]))
        self.body = body

    def forward(self, x: Any) -> Any:
        return self.dequant(self.body(self, self.conv(self.quant(x))))


def distance(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 6, 6, generator=generator) for _ in range(count)]


def network(body: Body) -> Any:
    torch.manual_seed(0)
    return Between(body).eval()


def check_in_networks(body: Body, *functions: str, tolerance: float = 0.05) -> None:
    """A network with the function in both front ends: near the float model, integers equal fake quant and ONNX Runtime.

    Args:
        body: `(module, x)`, where x is quantized.
        functions: names of the generated modules that must be there, such as `sub_0`.
        tolerance: of the prepared model's error, relative to the float output's norm.
    """
    for stage, convert in FRONT_ENDS.values():
        model = network(body)
        expected = model(batches()[0]).detach()
        prepared = stage(model, batches())
        assert {f"_generated_{name}" for name in functions} <= set(dict(prepared.named_children()))
        actual = prepared(batches()[0]).detach()
        assert actual.dtype == expected.dtype
        assert distance(actual, expected) < tolerance
        assert not [e for e in prepared.quant_effects if "between automatic" in e.reason]
        converted = convert(prepared)
        result = converted(batches()[0])
        assert distance(result, actual) < 0.01
        assert_equals_onnx(converted, batches()[0])
