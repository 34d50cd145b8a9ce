"""FakeCast as the activation of a qconfig: float16 between the products, in every stage and in the file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError
from profiler.quant import (
    DeQuantStub,
    FakeCast,
    FakeQuantState,
    QuantStub,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    get_default_qconfig,
    set_fake_quantize,
)
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.stages import FRONT_ENDS


class Net(nn.Module):
    """int8 products, float16 between them."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.again, self.dequant = QuantStub(), QuantStub(), DeQuantStub()
        self.first, self.act, self.last = nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 1)
        for part in (self.quant, self.again, self.last):
            part.qconfig = default_calib_8bit_fake_quant_qconfig

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.last(self.again(self.act(self.first(self.quant(x))))))


def holds_half(x: Any) -> bool:
    return type(x) is Tensor and torch.equal(x, x.half().float())


def results(model: nn.Module, x: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, n=name: found.update({n: out}))
        for name, module in model.named_modules()
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("front", FRONT_ENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fake_cast_qconfig_from_prepare_to_the_file(front: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    qconfig = get_default_qconfig("fake_cast", activation_qkwargs={"dtype": dtype})
    model, x = Net().eval(), torch.randn(2, 3, 6, 6)
    expected = model(x)
    prepare, convert = FRONT_ENDS[front]
    calib = prepare(model, [x], qconfig)
    actual = {effect.op: (effect.requested, effect.actual) for effect in calib.quant_effects}
    assert actual["first"] == actual["act"] == (str(dtype), str(dtype))
    assert actual["last"] == ("qint8", "qint8")
    assert float((calib(x) - expected).detach().abs().max()) < 0.05 * float(expected.detach().abs().max())

    converted = convert(calib)
    for stage in (calib, converted):
        found = results(stage, x)
        for name in ("first", "act"):
            assert torch.equal(found[name], found[name].to(dtype).float())
        assert not holds_half(found[""])  # the model's output is not cast
    assert torch.equal(converted(x), calib(x))
    if dtype is torch.float16:
        assert_equals_onnx(convert(calib), x)
    FakeCast.disable()
    try:
        assert not torch.equal(results(calib, x)["first"], results(calib, x)["first"].to(dtype).float())
    finally:
        FakeCast.enable()


@pytest.mark.parametrize("front", FRONT_ENDS)
def test_fake_cast_lets_gradients_through_in_qat(front: str) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 6, 6)
    qconfig = replace(default_qat_8bit_fake_quant_qconfig, activation=FakeCast.with_args(max_val=100.0))
    assert qconfig.activation is None
    assert replace(qconfig, activation=default_qat_8bit_fake_quant_qconfig.activation).cast is None
    qat = FRONT_ENDS[front][0](model, [x], qconfig)
    qat.train()
    set_fake_quantize(qat, FakeQuantState.QAT)
    qat(x).square().mean().backward()
    assert float(qat.first.weight.grad.abs().max()) > 0


def test_fake_cast_saturates_where_float16_overflows() -> None:
    model: Any = nn.Sequential(QuantStub(), nn.Conv2d(1, 1, 1), DeQuantStub()).eval()
    with torch.no_grad():
        model[1].weight.fill_(1e5)
    model[0].qconfig = default_calib_8bit_fake_quant_qconfig
    calib = FRONT_ENDS["eager"][0](model, [torch.ones(1, 1, 2, 2)], get_default_qconfig("fake_cast"))
    assert calib(torch.ones(1, 1, 2, 2)).tolist() == [[[[65504.0] * 2] * 2]]


def test_fake_cast_other_dtype_is_refused_where_the_qconfig_is_made() -> None:
    with pytest.raises(ConfigError, match=r"FakeCast dtype is torch\.float32"):
        get_default_qconfig("fake_cast", activation_qkwargs={"dtype": torch.float32})
    assert get_default_qconfig("fake_cast").activation_dtype == "torch.float16"
