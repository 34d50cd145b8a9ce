from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.errors import UnsupportedOpError
from tests.quant.op_forms import codes, quantized
from tests.quant.ops.scale_keeping_cases import assert_front_ends_run, assert_moves_codes

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "shuffle": (nn.PixelShuffle(2), (2, 12, 3, 5)),
    "shuffle_function": (lambda x: F.pixel_shuffle(x, 3), (1, 9, 2, 2)),
    "shuffle_keyword": (lambda x: torch.pixel_shuffle(x, upscale_factor=2), (2, 2, 8, 3, 1)),
    "unshuffle": (nn.PixelUnshuffle(2), (2, 3, 4, 6)),
    "unshuffle_function": (lambda x: F.pixel_unshuffle(x, 3), (3, 6, 9)),
    "channels": (nn.ChannelShuffle(3), (2, 12, 3, 5)),
    "channels_function": (lambda x: F.channel_shuffle(x, 2), (1, 6, 4, 4)),
    "empty": (nn.PixelShuffle(2), (0, 12, 3, 5)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_pixel_shuffle_moves_codes(name: str, dtype: str) -> None:
    op, shape = CASES[name]
    assert_moves_codes(op, shape, dtype)


@pytest.mark.parametrize(("op", "what"), [
    (nn.PixelShuffle(4), "12 channels"), (nn.PixelUnshuffle(2), "5 columns"), (nn.PixelUnshuffle(5), "4 rows"),
    (nn.ChannelShuffle(5), "12 channels"),
])  # fmt: skip
def test_pixel_shuffle_sizes_that_do_not_divide_are_refused(op: nn.Module, what: str) -> None:
    with pytest.raises(UnsupportedOpError, match=rf"{what} .*expected a multiple"):
        op(quantized(codes((2, 12, 4, 5)), 0.3))


@pytest.mark.parametrize("name", ["shuffle", "unshuffle", "channels"])
def test_pixel_shuffle_runs_in_both_front_ends(name: str) -> None:
    op, shape = CASES[name]
    assert_front_ends_run(op, shape)
