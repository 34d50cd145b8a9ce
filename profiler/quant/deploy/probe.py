"""Whether this machine's ONNX Runtime kernels are exact: some saturate 16-bit partial sums on CPUs without VNNI."""

from __future__ import annotations

import functools
from typing import Any

import torch

from profiler.quant.deploy.graph import GraphBuilder, Value, constant
from profiler.quant.deploy.session import make_session, run_session

_CHANNELS, _SIDE = 64, 6
_UNSIGNED_CONV = "QLinearConv uint8"


@functools.cache
def probe_kernels() -> dict[str, bool]:
    """Per integer operator: whether extreme codes (-128 by -128, 255 by 127, ...) give the exact sums here."""
    return {
        "QLinearConv": _conv("QLinearConv", torch.int8),
        "ConvInteger": _conv("ConvInteger", torch.int8),
        "ConvInteger uint8": _conv("ConvInteger", torch.uint8),
        "MatMulInteger": _matmul(torch.int8),
        "MatMulInteger uint8": _matmul(torch.uint8),
        _UNSIGNED_CONV: _conv("QLinearConv", torch.uint8),
    }


def integer_kernels_are_exact() -> bool:
    """Whether every integer operator that we export is exact on this CPU."""
    return all(is_exact for name, is_exact in probe_kernels().items() if name != _UNSIGNED_CONV)


def unsigned_kernels_are_exact() -> bool:
    """Whether the operators that `unsigned.with_unsigned_activations` writes are exact on this CPU."""
    return all(is_exact for name, is_exact in probe_kernels().items() if name.endswith("uint8"))


def _extremes(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Codes at the ends of the range, the largest magnitudes side by side."""
    ends = torch.iinfo(dtype)
    x = torch.full(shape, ends.max, dtype=dtype)
    x[:, : shape[1] // 2] = ends.max if dtype == torch.uint8 else ends.min
    x[-1] = ends.min
    return x


def _conv(op: str, dtype: torch.dtype) -> bool:
    x = _extremes((2, _CHANNELS, _SIDE, _SIDE), dtype)
    weight = _extremes((8, _CHANNELS, 3, 3), torch.int8)
    exact = torch.nn.functional.conv2d(x.double(), weight.double())
    builder = GraphBuilder()
    value = Value(builder.unique("x"), dtype, tuple(x.shape))
    if op == "ConvInteger":
        y = builder.node("ConvInteger", value, constant(weight), dtype=torch.int32)
        return _equals(builder, value, x, y, exact.to(torch.int32))
    scale, zero = constant(1.0, torch.float32), constant(128 if dtype == torch.uint8 else 0, dtype)
    multiplier = torch.tensor(2.0**-17)
    zeros = constant(torch.zeros(8, dtype=torch.int8))
    scales = constant(multiplier.expand(8))
    y = builder.node("QLinearConv", value, scale, zero, constant(weight), scales, zeros, scale, zero, dtype=dtype)
    if dtype == torch.uint8:
        exact = torch.nn.functional.conv2d(x.double() - 128, weight.double())
    codes = torch.round(exact.float() * multiplier).clamp(-128, 127)
    return _equals(builder, value, x, y, (codes + (128 if dtype == torch.uint8 else 0)).to(dtype))


def _matmul(dtype: torch.dtype) -> bool:
    x, weight = _extremes((4, 512), dtype), _extremes((512, 8), torch.int8)
    builder = GraphBuilder()
    value = Value(builder.unique("x"), dtype, tuple(x.shape))
    y = builder.node("MatMulInteger", value, constant(weight), dtype=torch.int32)
    return _equals(builder, value, x, y, (x.double() @ weight.double()).to(torch.int32))


def _equals(builder: GraphBuilder, x: Value, data: torch.Tensor, y: Value, expected: torch.Tensor) -> bool:
    output = Value(y.name, y.dtype, tuple(expected.shape))
    session: Any = make_session(builder.model([x], [output]), 0)
    return torch.equal(run_session(session, [x.name], [data])[0], expected)
