"""The table form itself: poles, caches, checkpoints, training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    QuantStub,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    prepare_qat,
    set_fake_quantize,
)
from profiler.quant.ops.functional import FunctionOp
from tests.quant.op_forms import assert_nearly_same_codes, forms_of, on_grid, quantized
from tests.quant.ops.table_cases import OneFunction, every_code
from tests.quant.stages import FRONT_ENDS, calibrate


class Gate(nn.Module):
    """A weighted op between two tables."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.act, self.conv = nn.SiLU(inplace=True), nn.Conv2d(3, 4, 1)

    def forward(self, x: Any) -> Any:
        return self.dequant(torch.sigmoid(self.act(self.conv(self.quant(x)))))


@pytest.mark.parametrize(("name", "code", "expected"), [
    ("log", 0, -128), ("log", -5, 0), ("reciprocal", 0, 127), ("rsqrt", 0, 127), ("sqrt", -7, 0), ("exp", 127, 127),
])  # fmt: skip
def test_pole_saturates_alike_in_both_forms(name: str, code: int, expected: int) -> None:
    fake, integer = forms_of(FunctionOp(name, None), 0.01)
    x_q = torch.tensor([code, 3], dtype=torch.int8)
    assert int(integer(quantized(x_q, 1.0)).plain[0]) == expected
    assert int(fake(on_grid(x_q, 1.0)).int_repr()[0]) == expected


def test_pole_is_not_observed() -> None:
    model = OneFunction(torch.log)
    x = torch.linspace(0, 8, 200).reshape(10, 20)
    for stage, to_integers in FRONT_ENDS.values():
        calib = stage(model, [x])
        log = next(m for m in calib.modules() if isinstance(m, FunctionOp))
        assert float(log.activation_post_process.scale) < 0.1
        y = to_integers(calib)(x)
        assert float(y[0, 0]) == -128 * float(log.activation_post_process.scale)


def test_table_is_made_once_per_scale_and_not_copied_with_the_model() -> None:
    _, integer = forms_of(nn.Sigmoid(), 0.01)
    for scale in (0.1, 0.2, 0.1):
        integer(quantized(every_code("qint8"), scale))
    cache = integer.__dict__["_cache"]
    assert len(cache) == 2
    assert all(table.shape == (256,) for table in cache.values())


def test_loading_another_output_scale_makes_another_table() -> None:
    _, first = forms_of(nn.Sigmoid(), 0.01)
    _, second = forms_of(nn.Sigmoid(), 0.02)
    x = quantized(every_code("qint8"), 0.1)
    first(x)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x).plain, second(x).plain)


@settings(max_examples=25, deadline=None)
@given(st.floats(-8, 8), st.floats(-8, 8), st.sampled_from(["silu", "tanh", "exp", "log", "reciprocal", "square"]))
def test_scales_over_sixteen_decades_both_forms_agree(x_exponent: float, out_exponent: float, name: str) -> None:
    fake, integer = forms_of(FunctionOp(name, None), 10**out_exponent)
    x_scale = 10**x_exponent
    y_fq, y_q = fake(on_grid(every_code("qint8"), x_scale)), integer(quantized(every_code("qint8"), x_scale))
    assert_nearly_same_codes(y_fq, y_q, 0.98)


def test_calib_checkpoint_to_qat_train_step_and_convert() -> None:
    torch.manual_seed(0)
    model, x = Gate(), torch.randn(8, 3, 6, 6)
    model.qconfig = default_calib_8bit_fake_quant_qconfig
    calib = calibrate(prepare_qat(model), [x])
    model.qconfig = default_qat_8bit_fake_quant_qconfig
    qat = prepare_qat(model)
    qat.load_state_dict(calib.state_dict())
    qat.train()
    optimizer = torch.optim.SGD(qat.parameters(), 0.1)
    before = float(qat(x).detach().mean())
    for _ in range(5):
        optimizer.zero_grad()
        qat(x).mean().backward()
        optimizer.step()
    qat.eval()
    set_fake_quantize(qat, FakeQuantState.VALIDATION)
    after = qat(x)
    assert float(after.detach().mean()) < before
    step = float(qat._generated_sigmoid_0.activation_post_process.scale)
    assert float((convert(qat)(x) - after).detach().abs().max()) <= 1.01 * step


def test_inplace_module_overwrites_its_input() -> None:
    fake, integer = forms_of(nn.SiLU(inplace=True), 0.02)
    for form, x in ((fake, on_grid(every_code("qint8"), 0.02)), (integer, quantized(every_code("qint8"), 0.02))):
        expected = F.silu(x.dequantize().clone())
        y = form(x)
        assert torch.equal(x.dequantize(), y.dequantize())
        torch.testing.assert_close(x.dequantize(), expected, rtol=0, atol=0.011)


def test_tables_of_many_scales_are_bounded_and_exact() -> None:
    _, integer = forms_of(FunctionOp("exp", None), 0.01)
    x_q, scales = every_code("qint8"), [0.001 * i for i in range(1, 50)]
    for scale in [*scales, *scales[:3]]:
        fresh = forms_of(FunctionOp("exp", None), 0.01)[1]
        assert torch.equal(integer(quantized(x_q, scale)).plain, fresh(quantized(x_q, scale)).plain)
    assert len(integer.__dict__["_cache"]) == 32
