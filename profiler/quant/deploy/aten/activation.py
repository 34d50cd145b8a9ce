"""Activation functions, softmax, and fake quantization."""

from __future__ import annotations

from typing import Any

import torch

from profiler.quant.deploy.emitters import Emission, emits, shape_of
from profiler.quant.deploy.graph import Value, constant


@emits("relu.default")
def relu(g: Emission, x: Value) -> Value:
    """Not below 0."""
    return g.binary("Max", x, 0)


@emits("gelu.default")
def gelu(g: Emission, x: Value, approximate: str = "none") -> Value:
    """Exact, or by tanh."""
    half = g.binary("Mul", x, 0.5)
    if approximate == "tanh":
        cube = g.binary("Mul", g.binary("Mul", x, x), x)
        inner = g.binary("Mul", g.binary("Add", x, g.binary("Mul", cube, 0.044715)), 0.7978845608028654)
        return g.binary("Mul", half, g.binary("Add", g.node("Tanh", inner), 1.0))
    erf = g.node("Erf", g.cast(g.binary("Mul", x, 0.7071067811865476), torch.float32))
    return g.binary("Mul", half, g.binary("Add", g.cast(erf, x.dtype), 1.0))


@emits("silu.default")
def silu(g: Emission, x: Value) -> Value:
    """`x * sigmoid(x)`."""
    return g.binary("Mul", x, g.node("Sigmoid", x))


@emits("mish.default")
def mish(g: Emission, x: Value) -> Value:
    """`x * tanh(softplus(x))`."""
    return g.binary("Mul", x, g.node("Tanh", softplus(g, x)))


@emits("hardswish.default")
def hardswish(g: Emission, x: Value) -> Value:
    """`x * clip(x + 3, 0, 6) / 6`."""
    return g.binary("Div", g.binary("Mul", x, _clip(g, g.binary("Add", x, 3.0), 0.0, 6.0)), 6.0)


@emits("hardsigmoid.default")
def hardsigmoid(g: Emission, x: Value) -> Value:
    """`clip(x + 3, 0, 6) / 6`."""
    return g.binary("Div", _clip(g, g.binary("Add", x, 3.0), 0.0, 6.0), 6.0)


@emits("leaky_relu.default")
def leaky_relu(g: Emission, x: Value, negative_slope: float = 0.01) -> Value:
    """A slope below 0."""
    return g.where(g.compare("Greater", x, 0), x, g.binary("Mul", x, negative_slope), x.dtype)


@emits("rrelu_with_noise.default")
def rrelu(g: Emission, x: Value, noise: Value, lower: float = 0.125, upper: float = 1 / 3, *_: Any) -> Value:
    """In eval the mean of both slopes below 0."""
    return leaky_relu(g, x, (lower + upper) / 2)


@emits("_prelu_kernel.default")
def prelu(g: Emission, x: Value, weight: Value) -> Value:
    """A slope per channel below 0."""
    return g.where(g.compare("Greater", x, 0), x, g.binary("Mul", x, weight), x.dtype)


@emits("elu.default")
def elu(g: Emission, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    """Exponential below 0."""
    below = g.binary("Sub", g.node("Exp", _clip(g, g.binary("Mul", x, input_scale), None, 0.0)), 1.0)
    return g.where(
        g.compare("Greater", x, 0), g.binary("Mul", x, scale), g.binary("Mul", below, alpha * scale), x.dtype
    )


@emits("softplus.default")
def softplus(g: Emission, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    """`log(1 + exp(beta x)) / beta`; `x` itself above the threshold."""
    scaled = g.binary("Mul", x, beta)
    small = g.cast(_clip(g, scaled, None, float(threshold)), torch.float64)
    log = g.cast(g.node("Log", g.binary("Add", g.node("Exp", small), 1.0)), x.dtype)
    return g.where(g.compare("Greater", scaled, threshold), x, g.binary("Div", log, beta), x.dtype)


@emits("log_sigmoid_forward.default")
def log_sigmoid(g: Emission, x: Value) -> tuple[Value, None]:
    """`min(x, 0) - log(1 + exp(-|x|))`."""
    small = g.cast(g.node("Neg", g.node("Abs", x)), torch.float64)
    log = g.cast(g.node("Log", g.binary("Add", g.node("Exp", small), 1.0)), x.dtype)
    return g.binary("Sub", g.binary("Min", x, 0), log), None


@emits("threshold.default")
def threshold(g: Emission, x: Value, threshold: float, value: float) -> Value:
    """A value where x is not above the threshold."""
    return g.where(g.compare("Greater", x, threshold), x, value, x.dtype)


@emits("_softmax.default")
def softmax(g: Emission, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Softmax along a dimension."""
    return g.node("Softmax", g.cast(x, g.out.dtype), axis=dim)


@emits("_log_softmax.default")
def log_softmax(g: Emission, x: Value, dim: int, *_: Any) -> Value:
    """Logarithm of the softmax."""
    return g.node("LogSoftmax", g.cast(x, g.out.dtype), axis=dim)


@emits("glu.default")
def glu(g: Emission, x: Value, dim: int = -1) -> Value:
    """First half times the sigmoid of the second."""
    half = shape_of(x)[dim] // 2
    first, second = g.nodes_of("Split", x, constant([half, half], torch.int64), dtypes=[x.dtype] * 2, axis=dim)
    return g.binary("Mul", first, g.node("Sigmoid", second))


@emits(
    "fake_quantize_per_tensor_affine_cachemask.default",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default",
)
def fake_quantize(
    g: Emission, x: Value, scale: Any, zero_point: Any, *args: Any, **kwargs: Any
) -> tuple[Value, Value | None]:
    """Codes and back: `clamp(round(x * (1 / scale)) + zero_point) - zero_point) * scale`."""
    quant_min, quant_max = args[-2:] if len(args) >= 2 else (kwargs["quant_min"], kwargs["quant_max"])
    return _fake_quantize(g, x, g.like(scale, torch.float32), g.like(zero_point, torch.float32), quant_min, quant_max)


@emits("fake_quantize_per_channel_affine_cachemask.default")
def fake_quantize_per_channel(
    g: Emission, x: Value, scale: Value, zero_point: Value, axis: int, quant_min: int, quant_max: int
) -> tuple[Value, Value | None]:
    """As per tensor, with a scale per channel."""
    shape = [1] * len(shape_of(x))
    shape[axis] = -1
    scales = [g.cast(g.reshape(v, shape), torch.float32) for v in (scale, zero_point)]
    return _fake_quantize(g, x, scales[0], scales[1], quant_min, quant_max)


def _fake_quantize(
    g: Emission, x: Value, scale: Value, zero_point: Value, quant_min: int, quant_max: int
) -> tuple[Value, None]:
    steps = g.node("Round", g.binary("Mul", x, g.binary("Div", 1.0, scale, torch.float32)))
    codes = _clip(g, g.binary("Add", steps, zero_point), float(quant_min), float(quant_max))
    return g.binary("Mul", g.binary("Sub", codes, zero_point), scale), None


def _clip(g: Emission, x: Value, low: float | None, high: float | None) -> Value:
    bounds = [None if bound is None else constant(bound, x.dtype) for bound in (low, high)]
    return g.node("Clip", x, *bounds)
