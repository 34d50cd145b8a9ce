from __future__ import annotations

import torch
from torch import Tensor, nn

from profiler.quant import default_calib_8bit_fake_quant_qconfig
from profiler.quant.fx.parts import prepare_traceable


class OneConvTwoNames(nn.Module):
    """Its forward branches on a value, so that it cannot be traced; both names are one module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        return self.second(self.first(x))


def test_prepare_traceable_part_under_two_names_is_replaced_under_both() -> None:
    torch.manual_seed(0)
    prepared = prepare_traceable(OneConvTwoNames(), {"": default_calib_8bit_fake_quant_qconfig})
    assert prepared.first is prepared.second
    assert type(prepared.second) is not nn.Conv2d
