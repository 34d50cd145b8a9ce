from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant import quantize
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.scale_keeping_cases import SCALE, Call, assert_front_ends_run, assert_moves_codes, in_calibration

MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    f"{kind}{n}d": (getattr(nn, f"{kind}Pad{n}d")(tuple(range(1, 2 * n + 1)) if n < 3 else 1), (2, 3, *[7] * n))
    for kind in ("Zero", "Reflection", "Replication", "Circular")
    for n in (1, 2, 3)
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_pad_modules_move_codes(name: str, dtype: str) -> None:
    module, shape = MODULES[name]
    assert_moves_codes(module, shape, dtype)


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    mode=st.sampled_from(["constant", "reflect", "replicate", "circular"]),
)
def test_pad_any_widths_move_codes(widths: list[int], mode: str) -> None:
    assert_moves_codes(lambda x: F.pad(x, widths, mode=mode), (1, 2, 5, 6))


def test_pad_negative_widths_crop() -> None:
    assert_moves_codes(lambda x: F.pad(x, (-1, 2, 1, -2)), (1, 2, 5, 6))


@pytest.mark.parametrize(
    ("value", "code"), [(0.9, 3), (0.95, 3), (1.06, 4), (0.46, 2), (150.0, 500), (-1e9, -32768), (1e9, 32767)]
)
def test_pad_constant_is_rounded_to_a_code_that_is_int16_where_int8_cannot_hold_it(value: float, code: int) -> None:
    x_q = codes((2, 3))
    for form in (quantized, on_grid):
        padded = F.pad(form(x_q, SCALE), (1, 0), value=value)
        assert padded.int_repr()[:, 0].tolist() == [code, code]
        assert torch.equal(padded.int_repr()[:, 1:], x_q)
        assert padded.qdtype == ("qint8" if -128 <= code <= 127 else "qint16")


class PadsLarge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(F.pad(self.a(x), (1, 1, 1, 1), value=5.0))
        return y


def test_pad_constant_beyond_the_range_of_its_input_keeps_its_value_in_integers_and_file() -> None:
    torch.manual_seed(1)
    model, batches = PadsLarge().eval(), [torch.randn(2, 3, 8, 8) for _ in range(3)]
    stages = quantize(model, batches, march="bayes")
    with torch.no_grad():
        expected, actual = model(batches[0]), stages.quantized(batches[0])
    assert float((actual - expected).norm() / expected.norm()) < 0.02
    assert_equals_onnx(stages.quantized, batches[0])


def test_pad_constant_module_equals_function() -> None:
    x = quantized(codes((2, 3, 4, 4)), SCALE)
    assert torch.equal(nn.ConstantPad2d(1, 2.0)(x).plain, F.pad(x, (1, 1, 1, 1), "constant", 2.0).plain)


def test_pad_constant_in_calibration_is_the_value_itself() -> None:
    padded = F.pad(in_calibration(torch.zeros(2, 2)), (1, 1), value=1.2345)
    assert float(padded.dequantize().max()) == pytest.approx(1.2345)


def test_pad_reflection_beyond_the_input_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match=r"reflect padding of 4.*length 4"):
        F.pad(quantized(codes((1, 1, 4, 4)), SCALE), (4, 0, 0, 0), mode="reflect")


def test_pad_unknown_mode_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="pad with mode 'mirror'"):
        F.pad(quantized(codes((1, 1, 4, 4)), SCALE), (1, 0, 0, 0), mode="mirror")


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_pad_runs_in_both_front_ends(mode: str) -> None:
    assert_front_ends_run(Call(lambda x: F.pad(x, (1, 2, 2, 1), mode=mode)), (2, 3, 6, 6))


def test_pad_with_a_value_runs_in_both_front_ends() -> None:
    assert_front_ends_run(Call(lambda x: F.pad(x, (1, 1), value=0.7)), (2, 3, 6, 6))
