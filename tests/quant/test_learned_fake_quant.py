"""LSQ and PACT: exact forward, gradients of their papers, training that moves scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from profiler.errors import ConfigError
from profiler.quant import (
    FakeCast,
    FakeQuantState,
    GlobalFakeQuantSwitch,
    PACTFakeQuantize,
    _LearnableFakeQuantize,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_lsq_quant_qconfig,
    get_default_qconfig,
    prepare_qat,
    set_fake_quantize,
)
from profiler.quant.observers import MinMaxObserver
from tests.models import Stubbed
from tests.quant.stages import calibrate

X = torch.tensor([-200.0, -128.2, -3.3, -0.2, 0.0, 0.4, 2.6, 127.4, 127.6, 300.0])


def learned(cls: Any, scale: float, **kwargs: Any) -> Any:
    fake_quant = cls(observer=MinMaxObserver, **kwargs)
    fake_quant.set_qparams(scale)
    return fake_quant.train()


@pytest.mark.parametrize("cls", [_LearnableFakeQuantize, PACTFakeQuantize])
def test_learned_forward_equals_the_formula_exactly(cls: Any) -> None:
    x = torch.randn(4000) * 3
    scale = torch.tensor(0.0371)
    expected = torch.round(x * (1 / scale)).clamp(-128, 127) * scale
    assert torch.equal(learned(cls, 0.0371)(x).detach(), expected)


def test_lsq_gradients_are_those_of_the_paper() -> None:
    fake_quant = learned(_LearnableFakeQuantize, 1.0)
    x = X.clone().requires_grad_()
    fake_quant(x).sum().backward()
    steps = X / 1.0
    expected = torch.where(
        (steps.round() >= -128) & (steps.round() <= 127), steps.round() - steps, steps.clamp(-128, 127)
    )
    assert float(fake_quant.scale.grad) == pytest.approx(float(expected.sum()), rel=1e-6)
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_lsq_gradient_scaling_divides_by_the_root_of_values_and_levels() -> None:
    grads = []
    for use in (False, True):
        fake_quant = learned(_LearnableFakeQuantize, 1.0, use_grad_scaling=use)
        fake_quant(X.clone().requires_grad_()).sum().backward()
        grads.append(float(fake_quant.scale.grad))
    assert grads[1] == pytest.approx(grads[0] / (10 * 127) ** 0.5)


def test_pact_only_clipped_values_give_the_bound_a_gradient() -> None:
    fake_quant = learned(PACTFakeQuantize, 1.0)
    x = X.clone().requires_grad_()
    fake_quant(x).sum().backward()
    assert float(fake_quant.scale.grad) == 127 + 127 - 128
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_lsq_per_channel_gradient_is_each_channels_own() -> None:
    fake_quant = learned(
        _LearnableFakeQuantize, torch.tensor([0.1, 0.5]), ch_axis=0, qscheme=torch.per_channel_symmetric
    )  # type: ignore[arg-type]
    w = torch.randn(2, 30)
    fake_quant(w).sum().backward()
    for c, scale in enumerate((0.1, 0.5)):
        alone = learned(_LearnableFakeQuantize, scale)
        alone(w[c]).sum().backward()
        assert float(fake_quant.scale.grad[c]) == pytest.approx(float(alone.scale.grad), rel=1e-5)


class Net(Stubbed):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.post = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def body(self, x: Any) -> Any:
        return self.post(self.conv(x))


@pytest.mark.parametrize("kind", ["lsq", "pact"])
def test_learned_scales_train_with_an_optimizer_made_before_the_first_forward(kind: str) -> None:
    torch.manual_seed(0)
    model: Any = Net()
    qkwargs = {"use_grad_scaling": True}
    model.qconfig = get_default_qconfig(kind, "lsq", activation_qkwargs=qkwargs, weight_qkwargs=qkwargs)
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    prepared: Any = calibrate(prepare_qat(model.eval()), batches)
    fresh: Any = prepare_qat(model)
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.01)
    fresh.load_state_dict(prepared.state_dict())
    fresh.train()
    set_fake_quantize(fresh, FakeQuantState.QAT)
    before = {n: p.detach().clone() for n, p in fresh.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        fresh(batches[0]).square().mean().backward()
        optimizer.step()
    moved = {n for n, p in fresh.named_parameters() if not torch.equal(p, before[n])}
    assert "conv.weight_fake_quant.scale" in moved
    assert {n for n in moved if n.endswith("activation_post_process.scale")}
    fresh.eval()
    set_fake_quantize(fresh, FakeQuantState.VALIDATION)
    converted: Any = convert(fresh)
    codes: list[Any] = []
    for stage in (fresh, converted):
        stage.conv.register_forward_hook(lambda module, args, result: codes.append(result.int_repr().int()))
        stage(batches[1])
    assert int((codes[0] - codes[1]).abs().max()) <= 1
    assert float((codes[0] == codes[1]).float().mean()) > 0.999


def test_learned_scale_below_zero_goes_back_to_the_floor() -> None:
    fake_quant = learned(_LearnableFakeQuantize, 1.0)
    fake_quant.scale.data.fill_(-1.0)
    assert float(fake_quant.eval().scale) == 2.0**-23


def test_b2_calib_checkpoint_loads_strictly_into_an_lsq_model_and_back() -> None:
    model: Any = Net().eval()
    model.qconfig = default_calib_8bit_fake_quant_qconfig
    calib: Any = calibrate(prepare_qat(model), [torch.randn(2, 3, 8, 8)])
    model.qconfig = default_qat_8bit_lsq_quant_qconfig
    qat: Any = prepare_qat(model)
    qat.load_state_dict(calib.state_dict())
    assert torch.equal(qat.conv.activation_post_process.scale.data, calib.conv.activation_post_process.scale)
    calib.load_state_dict(qat.state_dict())


def test_global_switch_turns_rounding_off_inside_a_region() -> None:
    model: Any = Net().eval()
    model.qconfig = default_calib_8bit_fake_quant_qconfig
    x = torch.randn(2, 3, 8, 8)
    calib: Any = calibrate(prepare_qat(model), [x])
    rounded = calib(x)
    try:
        GlobalFakeQuantSwitch.disable()
        assert torch.allclose(calib(x), model(x), atol=1e-4)
    finally:
        GlobalFakeQuantSwitch.enable()
    assert torch.equal(calib(x), rounded)
    assert not torch.equal(rounded, model(x))


def test_fake_cast_gives_the_values_of_half_precision() -> None:
    x = torch.tensor([1.0009765, 1e-9, 70000.0, -1e9])
    assert FakeCast()(x).tolist() == [*x[:2].half().float().tolist(), 65504.0, -65504.0]
    assert FakeCast(min_val=-1.0, max_val=1.0)(x).tolist() == [1.0, 0.0, 1.0, -1.0]
    try:
        FakeCast.disable()
        assert torch.equal(FakeCast()(x), x)
    finally:
        FakeCast.enable()
    with pytest.raises(ConfigError, match=r"use torch.float16 or torch.bfloat16"):
        FakeCast(torch.float32)
