"""R1, R5, R6, R7, R9, R98, R99, R100 through the public API."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from profiler.errors import ConfigError, NotCalibratedError, StateError
from profiler.quant import (
    FakeQuantize,
    FakeQuantState,
    FixedScaleObserver,
    March,
    MinMaxObserver,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_out_8bit_fake_quant_qconfig,
    get_march,
    march,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
    set_march,
    set_state_policy,
)
from profiler.quant.states import named_fake_quants
from tests.models import Stubbed
from tests.quant.stages import calibrate

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(Stubbed):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.up, self.last = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 2), nn.Conv2d(3, 2, 1)

    def body(self, x: Any) -> Any:
        return self.last(self.up(self.conv(x)))


def prepared(qconfig: Any = default_calib_8bit_fake_quant_qconfig, edit: Any = None) -> Any:
    model: Any = Net().eval()
    model.qconfig = qconfig
    if edit is not None:
        edit(model)
    return prepare_qat(model)


@pytest.mark.parametrize("call", [prepare_qat, prepare_qat_fx])
def test_r1_prepare_without_a_march_names_set_march(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(march, "_current", None)
    with pytest.raises(ConfigError, match="set_march"):
        call(nn.Conv2d(1, 1, 1))
    set_march("bayes")
    assert get_march() is March.BAYES


@pytest.mark.parametrize(("dtype", "half", "low", "high"), [
    ("qint8", 127.5, -128, 127), ("qint16", 32767.5, -32768, 32767),
])  # fmt: skip
def test_r5_scale_of_absmax_one_and_both_ends_of_the_range(dtype: str, half: float, low: int, high: int) -> None:
    fake_quant = FakeQuantize(MinMaxObserver, dtype=dtype)
    fake_quant(torch.tensor([-1.0, 0.3, 1.0]))
    scale = float(fake_quant.scale)
    assert scale == float(np.float32(1) / np.float32(half))
    y = fake_quant.eval()(torch.tensor([-1.01, 1.01]))  # -1 itself lies on the tie between -128 and -127
    assert (y / fake_quant.scale).round().tolist() == [low, high]
    threshold = FakeQuantize(FixedScaleObserver, scale=1.0 / -low, dtype=dtype)
    assert float(threshold.scale) == 1.0 / (-low)


def test_r5_zeros_give_the_floor() -> None:
    fake_quant = FakeQuantize(MinMaxObserver)
    assert torch.equal(fake_quant(torch.zeros(5)), torch.zeros(5))
    assert float(fake_quant.scale) == 2.0**-23


def test_r6_a_hundred_times_larger_channel_has_a_hundred_times_larger_scale() -> None:
    def edit(model: Any) -> None:
        model.conv.weight.data[1] = model.conv.weight.data[0] * 100
        model.up.weight.data[:, 2] = model.up.weight.data[:, 0] * 100

    model = calibrate(prepared(edit=edit), [X])
    conv, up = model.conv.weight_fake_quant, model.up.weight_fake_quant
    assert float(conv.scale[1] / conv.scale[0]) == pytest.approx(100)
    assert (conv.ch_axis, up.ch_axis) == (0, 1)
    assert float(up.scale[2] / up.scale[0]) == pytest.approx(100)
    assert (conv.scale.numel(), up.scale.numel()) == (4, 3)


def test_r7_fake_quant_is_the_formula_and_passes_the_gradient_inside_only() -> None:
    fake_quant = FakeQuantize(FixedScaleObserver, scale=0.1)
    x = torch.linspace(-20, 20, 4001).requires_grad_()
    y = fake_quant(x)
    scale = np.float32(0.1)
    codes = np.clip(np.rint(x.detach().numpy() * (np.float32(1) / scale)), -128, 127)
    assert torch.equal(y.detach(), torch.tensor(codes * scale))
    y.sum().backward()
    unclipped = np.rint(x.detach().numpy() * (np.float32(1) / scale))
    assert x.grad is not None
    assert x.grad.tolist() == ((unclipped >= -128) & (unclipped <= 127)).astype(float).tolist()


@pytest.mark.parametrize(("state", "observer", "rounds", "root_trains"), [
    (FakeQuantState.QAT, 1, 1, True), (FakeQuantState.CALIBRATION, 1, 0, False),
    (FakeQuantState.VALIDATION, 0, 1, False), (FakeQuantState._FLOAT, 0, 0, False),
])  # fmt: skip
def test_r9_each_state_sets_the_flags_of_the_table(
    state: FakeQuantState, observer: int, rounds: int, root_trains: bool
) -> None:
    model = prepared().train(root_trains)
    set_fake_quantize(model, state)
    for _, fake_quant in named_fake_quants(model):
        assert int(fake_quant.observer_enabled) == observer
        assert int(fake_quant.fake_quant_enabled) == rounds
        if state is FakeQuantState.CALIBRATION:
            assert fake_quant.training
    assert not model.training or root_trains


def test_r9_qat_in_eval_is_an_error_and_prepare_ends_in_qat() -> None:
    model = prepared()
    flags = {(int(f.observer_enabled), int(f.fake_quant_enabled)) for _, f in named_fake_quants(model)}
    assert flags == {(1, 1)}
    with pytest.raises(StateError, match=r"needs model\.train\(\) first"):
        set_fake_quantize(model.eval(), FakeQuantState.QAT)


def test_r98_loading_a_calibration_checkpoint_leaves_validation() -> None:
    model = prepared().eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model(X)
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    assert int(saved["conv.activation_post_process.fake_quant_enabled"]) == 0
    other = calibrate(prepared(), [X * 2])
    other.load_state_dict(saved)
    for _, fake_quant in named_fake_quants(other):
        assert (int(fake_quant.observer_enabled), int(fake_quant.fake_quant_enabled)) == (0, 1)
        assert fake_quant.is_fake_quant_on
        assert not fake_quant.is_observer_on
    assert torch.equal(other.conv.activation_post_process.scale, model.conv.activation_post_process.scale)


def test_r99_uncalibrated_forward_names_the_mistake_and_the_module() -> None:
    model = prepared().eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model.eval()
    with pytest.raises(StateError, match=r"quant\.activation_post_process: observing is on and fake quant is off"):
        model(X)
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    with pytest.raises(NotCalibratedError, match=r"quant\.activation_post_process: fake quant is on, but no scale"):
        model(X)
    with pytest.raises(NotCalibratedError, match=r"quant\.activation_post_process"):
        convert(model)
    set_state_policy("warn")
    assert bool(torch.isfinite(model(X)).all())
    with pytest.raises(NotCalibratedError):
        convert(model)


def test_r99_a_true_scale_of_one_is_accepted() -> None:
    model = prepared().eval()
    for name, fake_quant in named_fake_quants(model):
        if "weight" not in name:
            fake_quant.set_qparams(1.0)
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    assert torch.equal(convert(model)(X * 20).round(), convert(model)(X * 20))


def test_r100_repr_of_a_high_precision_and_of_an_int8_conv() -> None:
    def edit(model: Any) -> None:
        model.last.qconfig = default_qat_out_8bit_fake_quant_qconfig

    model = prepared(default_qat_8bit_fake_quant_qconfig, edit)
    text, out = repr(model.conv), repr(model.last)
    assert text.startswith("Conv2d(\n  3, 4, kernel_size=(3, 3)") or text.startswith("Conv2d(3, 4, kernel_size=(3, 3)")
    for part in (
        "(weight_fake_quant): FakeQuantize(", "fake_quant_enabled=tensor([1], dtype=torch.uint8)",
        "quant_min=-128, quant_max=127, dtype=qint8, qscheme=torch.per_channel_symmetric, ch_axis=0",
        "MovingAveragePerChannelMinMaxObserver(min_val=tensor([]), max_val=tensor([]))",
        "qscheme=torch.per_tensor_symmetric, ch_axis=-1, scale=tensor([1.])",
        "(activation_post_process): MovingAverageMinMaxObserver(min_val=tensor([]), max_val=tensor([]))",
    ):  # fmt: skip
        assert part in text
    assert "MovingAverageMinMaxObserver" not in out
    assert "(weight_fake_quant): FakeQuantize(" in out
