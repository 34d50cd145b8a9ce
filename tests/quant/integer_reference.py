"""Integer arithmetic in numpy, written from the numeric model and from nothing else: the truth for integer forms."""

from __future__ import annotations

from typing import Any

import numpy as np

INT8, INT16 = (-128, 127), (-32768, 32767)
ABSMAX_FLOOR = np.float32(127.5 * 2.0**-23)
_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def scales_of_channels(weight: np.ndarray, half_range: float = 127.5) -> np.ndarray:
    """absmax / 127.5 of each row, float32."""
    absmax = np.abs(weight.reshape(weight.shape[0], -1)).max(1).astype(np.float32)
    return np.maximum(absmax, ABSMAX_FLOOR) / np.float32(half_range)


def weight_codes(weight: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """int64 codes of a float32 weight `[C, ...]`."""
    inverse = (np.float32(1) / scales).reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(weight * inverse), *INT8).astype(np.int64)


def bias_codes(bias: np.ndarray, acc_scale: np.ndarray) -> np.ndarray:
    """Bias in accumulator steps, int64."""
    return np.rint(bias.astype(np.float64) / acc_scale.astype(np.float64)).astype(np.int64)


def requantized(acc: np.ndarray, multiplier: Any, code_range: tuple[int, int] = INT8) -> np.ndarray:
    """`clamp(round(acc * m))` with the product in float32, ties to even."""
    product = acc.astype(np.float32) * np.asarray(multiplier, np.float32)
    return np.clip(np.rint(product), *code_range).astype(np.int64)


def along_channels(values: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    """`[C]` viewed so that it broadcasts along an axis."""
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def padded(x: np.ndarray, padding: tuple[tuple[int, int], ...], mode: str = "zeros") -> np.ndarray:
    """Spatial padding of `[N, C, ...]`."""
    return np.pad(x, ((0, 0), (0, 0), *padding), mode=_PAD_MODES[mode])


def conv_accumulator(
    x: np.ndarray, weight: np.ndarray, stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> np.ndarray:
    """int64 convolution of padded codes `[N, C, ...]` with weight codes `[O, C / groups, ...]`."""
    num_spatial = len(stride)
    spans = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + num_spatial)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]
    windows = windows[(Ellipsis, *(slice(None, None, d) for d in dilation))]
    parts = []
    per_group_in, per_group_out = x.shape[1] // groups, weight.shape[0] // groups
    for g in range(groups):
        inputs = windows[:, g * per_group_in : (g + 1) * per_group_in]
        kernel = weight[g * per_group_out : (g + 1) * per_group_out]
        axes_in = [1, *range(2 + num_spatial, 2 + 2 * num_spatial)]
        product = np.tensordot(inputs, kernel, axes=(axes_in, list(range(1, 2 + num_spatial))))
        parts.append(np.moveaxis(product, -1, 1))
    return np.concatenate(parts, 1)
