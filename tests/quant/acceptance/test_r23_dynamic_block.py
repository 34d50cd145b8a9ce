"""R23: a loop body in a dynamic block is the same ops however often it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError
from profiler.quant import (
    DeQuantStub,
    QuantStub,
    Tracer,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat_fx,
    wrap,
)
from profiler.quant.quantize import quantize
from tests.quant.acceptance.test_r21_wrap import QCONFIG, batches, close, op_names
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.stages import FRONT_ENDS, calibrate


class Looping(nn.Module):
    """The loop body runs as often as the input asks for."""

    def __init__(self, trips: int | None = None) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.trips = nn.Conv2d(3, 3, 3, padding=1), trips

    def forward(self, x: Tensor, trips: int = 3) -> Any:
        x = self.quant(x)
        y = x + 1.0
        for _ in range(trips if self.trips is None else self.trips):
            with Tracer.dynamic_block(self, "Body"):
                y = torch.relu(self.conv(y) + x)
                y = y + 0.5
        return self.dequant(y + x)


def test_r23_changing_trip_count_has_one_module_per_call_site_in_the_eager_flow() -> None:
    model, data = Looping().eval(), [(x, trips) for x, trips in zip(batches(), (2, 3, 1, 4), strict=True)]

    eager, convert = FRONT_ENDS["eager"]
    calib = eager(_Pairs(model), data)
    names = [n for n in calib.net._modules if n.startswith("_generated")]
    assert names == [
        "_generated_add_0", "_generated_Body__add_0", "_generated_Body__add_1", "_generated_add_1",
    ]  # fmt: skip
    converted = convert(calib)
    for trips in (1, 2, 5):  # also more than calibration saw
        x = data[0][0]
        assert close(converted((x, trips)), model(x, trips))
        assert float((converted((x, trips)) - calib((x, trips))).abs().max()) < 0.1
    for stage in (_Pairs(model), calib, converted):
        found = op_names(stage, (data[0][0], 2))  # type: ignore[arg-type]
        assert [n for n in found if "add" in n] == [
            "net.add_0", "net.Body.add_0", "net.Body.add_1", "net.Body.add_0(1)", "net.Body.add_1(1)", "net.add_1",
        ]  # fmt: skip


@pytest.mark.parametrize("frontend", ["record", "auto"])
def test_r23_changing_trip_count_is_recorded_with_one_module_per_call_site(frontend: str) -> None:
    model = Looping().eval()
    data = [(x, trips) for x, trips in zip(batches(), (2, 3, 1, 4), strict=True)]
    stages = quantize(model, data, frontend=frontend)
    assert stages.frontend == "record"
    assert [n for n in stages.quantized._modules if n.startswith("_generated")] == [
        "_generated_add_0", "_generated_Body__add_0", "_generated_Body__add_1", "_generated_add_1",
    ]  # fmt: skip
    for trips in (1, 2, 5):
        assert close(stages.quantized(data[0][0], trips), model(data[0][0], trips))


class _Pairs(nn.Module):
    """One argument for `Looping`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pair: Any) -> Any:
        return self.net(*pair)


def test_r23_traced_loop_shares_its_modules_between_trips() -> None:
    data = batches()
    states = []
    for trips in (2, 4):
        torch.manual_seed(0)
        model = Looping(trips).eval()
        calib = calibrate(prepare_qat_fx(model, QCONFIG), data)
        converted = convert_fx(calib)
        assert close(converted(data[0]), model(data[0]))
        assert_equals_onnx(converted, data[0])
        assert [n for n in op_names(calib, data[0]) if n.startswith("Body.add")][:2] == ["Body.add_0", "Body.add_1"]
        states.append(calib.state_dict())
    assert states[0].keys() == states[1].keys()  # a checkpoint of one trip count loads into another


def test_r23_block_in_wrapped_code_and_blocks_in_blocks_are_named_by_both() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        @wrap()
        def loop(self, x: Any) -> Any:
            for _ in range(1 + int(bool((x > 0).any()))):
                with Tracer.dynamic_block(self, "Outer"), Tracer.dynamic_block(self, "Inner"):
                    x = self.conv(x) + x
            return x

        def forward(self, x: Tensor) -> Any:
            return self.loop(x)

    model, data = Net().eval(), batches()
    calib = calibrate(prepare_qat_fx(model, QCONFIG), data)
    converted = convert_fx(calib)
    for stage in (model, calib, converted):
        assert "loop.Outer.Inner.add_0" in op_names(stage, data[0])
    assert close(converted(data[0]), model(data[0]))


def test_r23_block_that_raises_leaves_nothing_behind() -> None:
    model = Looping().eval()
    model.qconfig = default_calib_8bit_fake_quant_qconfig  # type: ignore[assignment]
    calib = FRONT_ENDS["eager"][0](model, batches())
    with pytest.raises(RuntimeError):
        calib(torch.randn(1, 5, 8, 8))
    x = batches()[0]
    assert torch.equal(calib(x), calib(x))


@pytest.mark.parametrize("name", ["two words", "a__b", "_Body", "conv", 3])
def test_dynamic_block_name_that_cannot_be_one_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="dynamic_block name"), Tracer.dynamic_block(Looping(), name):
        pass
    with pytest.raises(ConfigError, match="write Tracer"), Tracer.dynamic_block("Body", "Body"):  # type: ignore[arg-type]
        pass
