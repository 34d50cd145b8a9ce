from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.quant import (
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    prepare_qat_fx,
)
from profiler.quant.ops.gemm import IntegerGemm
from tests.models import DataDependent, Residual, Stubbed, UnsupportedMiddle, UntraceableMiddle, images, make
from tests.quant.stages import calibrate, fx


class CustomLeafNet(Stubbed):
    """An op of another library: torch.nn's namespace has no quantized form for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 4, 1), nn.LocalResponseNorm(2), nn.Conv2d(4, 3, 1)

    def body(self, x: Any) -> Any:
        return self.last(self.middle(self.first(x)))


class NoStubs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


FLOAT_OPS = {UnsupportedMiddle: {"pool", "logcumsumexp_0"}, UntraceableMiddle: {"part"}, CustomLeafNet: {"middle"}}


@pytest.mark.parametrize("cls", FLOAT_OPS)
def test_unsupported_op_runs_in_float_between_stubs_and_is_named(cls: type[nn.Module]) -> None:
    model = make(cls)
    prepared = fx(model, images())
    named = {e.op for e in prepared.quant_effects if e.actual == "torch.float32" and e.reason}
    assert FLOAT_OPS[cls] <= named
    integer = convert_fx(prepared)
    convs = [m for m in integer.modules() if isinstance(m, IntegerGemm)]
    assert len(convs) == 2
    for x in images():
        expected = model(x)
        assert torch.allclose(prepared(x), expected, atol=0.05 * float(expected.detach().abs().max()))
        assert torch.allclose(integer(x), prepared(x), atol=0.03 * float(expected.detach().abs().max()))


def test_untraceable_part_is_the_users_float_module() -> None:
    prepared = fx(make(UntraceableMiddle), images())
    assert type(prepared.part) is DataDependent
    assert prepared.quant_leaves == ("part",)


def test_model_without_stubs_gets_them_at_its_inputs_and_outputs() -> None:
    model = NoStubs().eval()
    prepared = fx(model, images())
    y = convert_fx(prepared)(images()[0])
    assert type(y) is Tensor
    assert torch.allclose(y, model(images()[0]), atol=0.05)
    assert all(isinstance(m, IntegerGemm) for n, m in convert_fx(prepared).named_modules() if n in ("first", "last"))


def test_region_outside_the_stubs_is_untouched() -> None:
    class Outside(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.conv, self.after = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.after(super().forward(self.before(x) * 2) + 1))

        def body(self, x: Any) -> Any:
            return self.conv(x)

    model = Outside().eval()
    integer = convert_fx(fx(model, images()))
    assert isinstance(integer.conv, IntegerGemm)
    assert not isinstance(integer.before, IntegerGemm)
    assert not isinstance(integer.after, IntegerGemm)
    assert torch.allclose(integer(images()[0]), model(images()[0]), atol=0.02)


def test_part_with_qconfig_none_runs_in_float_with_stubs_around() -> None:
    model = make(Residual)
    qconfig = default_calib_8bit_fake_quant_qconfig
    prepared = calibrate(prepare_qat_fx(model, {"": qconfig, "module_name": {"block": None}}), images())
    integer = convert_fx(prepared)
    assert not any(isinstance(m, IntegerGemm) for m in integer.block.modules())
    assert isinstance(integer.stem.convolution, IntegerGemm)
    assert torch.allclose(integer(images()[0]), model(images()[0]), atol=0.1)


@pytest.mark.parametrize("hybrid", [{"module_type": [nn.Linear]}, {"module_name": ["head"]}])
def test_hybrid_dict_ops_stay_in_float(hybrid: dict[str, Any]) -> None:
    prepared = prepare_qat_fx(make(Residual), {"": default_qat_8bit_fake_quant_qconfig}, hybrid_dict=hybrid)
    assert type(prepared.head) is nn.Linear


def test_parameter_operand_is_quantized() -> None:
    class Constant(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.shift = nn.Conv2d(3, 3, 1), nn.Parameter(torch.rand(1, 3, 1, 1))

        def body(self, x: Any) -> Any:
            return torch.relu(self.conv(x)) + self.shift

    model = Constant().eval()
    assert torch.allclose(convert_fx(fx(model, images()))(images()[0]), model(images()[0]), atol=0.05)


def test_high_precision_outputs_go_to_ops_that_only_feed_dequant() -> None:
    prepared = prepare_qat_fx(make(Residual), {"": default_qat_8bit_fake_quant_qconfig}, high_precision_outputs=True)
    assert prepared.head.activation_post_process is None
    assert prepared.stem.convolution.activation_post_process is not None
