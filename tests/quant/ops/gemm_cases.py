"""What the tests of conv, conv1d and linear share: the exact expected codes of a weighted op."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from tests.quant.integer_reference import (
    INT8,
    INT16,
    along_channels,
    bias_codes,
    conv_accumulator,
    padded,
    requantized,
    scales_of_channels,
    weight_codes,
)

RANGES = {"qint8": INT8, "qint16": INT16}


def spatial_padding(module: Any) -> tuple[tuple[int, int], ...]:
    """(before, after) of each spatial axis."""
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    return tuple((p, p) for p in module.padding)


def product(module: Any, x_q: np.ndarray, w_q: np.ndarray) -> tuple[np.ndarray, int]:
    """int64 accumulator of codes without bias, and the axis of its channels."""
    if isinstance(module, nn.Linear):
        return x_q @ w_q.T, -1
    x_q = padded(x_q, spatial_padding(module), module.padding_mode)
    return conv_accumulator(x_q, w_q, module.stride, module.dilation, module.groups), 1


def scales_and_codes(module: Any) -> tuple[np.ndarray, np.ndarray]:
    weight = module.weight.detach().numpy()
    scales = scales_of_channels(weight)
    return scales, weight_codes(weight, scales)


def accumulator(module: Any, x_q: Tensor, x_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """int64 accumulator with bias, and its float32 scale, viewed along its channels."""
    w_scale, w_q = scales_and_codes(module)
    acc, axis = product(module, x_q.numpy().astype(np.int64), w_q)
    acc_scale = np.float32(x_scale) * w_scale
    if module.bias is not None:
        acc = acc + along_channels(bias_codes(module.bias.detach().numpy(), acc_scale), acc.ndim, axis)
    return acc, along_channels(acc_scale, acc.ndim, axis)


def bias_in_steps(module: Any, x_scale: float) -> np.ndarray:
    """The bias as both forms have it in eval: whole steps of the accumulator, as real values in float64."""
    step = np.float64(np.float32(x_scale)) * scales_and_codes(module)[0].astype(np.float64)
    result: np.ndarray = np.rint(module.bias.detach().double().numpy() / step) * step
    return result


def expected_codes(
    module: Any,
    x_q: Tensor,
    x_scale: float,
    out_scale: float,
    *,
    activation: str = "",
    other: tuple[Tensor, float] | None = None,
    dtype: str = "qint8",
) -> np.ndarray:
    """Output codes by the numeric model: bias, then the other operand rounded once, ReLU, requantization."""
    acc, acc_scale = accumulator(module, x_q, x_scale)
    if other is not None:
        multiplier = (np.float64(np.float32(other[1])) / acc_scale.astype(np.float64)).astype(np.float32)
        acc = acc + np.rint(other[0].numpy().astype(np.float32) * multiplier).astype(np.int64)
    if activation:
        acc = np.maximum(acc, 0)
    y_q = requantized(acc, acc_scale / np.float32(out_scale), RANGES[dtype])
    if activation == "relu6":
        y_q = np.minimum(y_q, np.rint(np.float32(6) / np.float32(out_scale)).astype(np.int64))
    return y_q


def scale_that_fits(module: Any, x_q: Tensor, x_scale: float, dtype: str = "qint8") -> float:
    """Output scale that clips only the outermost results."""
    acc, acc_scale = accumulator(module, x_q, x_scale)
    real = np.abs(acc * acc_scale.astype(np.float64))
    return float(real.max() * 0.9 / RANGES[dtype][1]) if real.size else 0.1
