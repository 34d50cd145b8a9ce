from __future__ import annotations

import pytest
import torch

from profiler.quant import DeQuantStub
from tests.quant.op_forms import codes, on_grid, quantized


@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_dequant_stub_gives_codes_times_scale_as_a_plain_tensor(dtype: str) -> None:
    x_q = codes((3, 50), dtype=dtype)
    expected = x_q.float() * torch.tensor(0.3)
    for x in (quantized(x_q, 0.3, dtype), on_grid(x_q, 0.3, dtype)):
        y = DeQuantStub()(x)
        assert type(y) is torch.Tensor
        assert torch.equal(y, expected)


def test_dequant_stub_float_tensor_passes() -> None:
    x = torch.rand(3)
    assert DeQuantStub()(x) is x
