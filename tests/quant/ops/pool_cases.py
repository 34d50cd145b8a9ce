"""Integer pooling in numpy, window by window."""

from __future__ import annotations

import numpy as np

from tests.quant.integer_reference import requantized


def windows(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> list[tuple[int, int]]:
    """(start, end) of each pooling window in padded coordinates, as torch lays them out."""
    span = size + 2 * padding - kernel
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1  # a window must start inside the input or its left padding
    return [(i * stride - padding, min(i * stride - padding + kernel, size + padding)) for i in range(count)]


def averaged(
    x: np.ndarray,
    rows: list[tuple[int, int]],
    columns: list[tuple[int, int]],
    ratio: float,
    *,
    counts_padding: bool = True,
    divisor: int | None = None,
    code_range: tuple[int, int] = (-128, 127),
) -> np.ndarray:
    """Codes of an average over windows: int64 sums, then one requantization by ratio / divisor."""
    height, width = x.shape[-2:]
    out = np.zeros((*x.shape[:-2], len(rows), len(columns)), np.int64)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            inside = x[..., max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
            area = (bottom - top) * (right - left) if counts_padding else inside.shape[-1] * inside.shape[-2]
            multiplier = np.float32(ratio / (divisor or max(area, 1)))
            out[..., i, j] = requantized(inside.astype(np.int64).sum((-2, -1)), multiplier, code_range)
    return out
