"""weight_reconstruction on every kind of weighted op, on awkward networks, and when something goes wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, NotCalibratedError, PrepareError
from profiler.quant import (
    FakeQuantState,
    FloatFunctional,
    QATMode,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    freeze_part,
    fuse_modules,
    prepare_qat,
    set_fake_quantize,
    set_qat_mode,
    weight_reconstruction,
)
from profiler.quant.affine import quantize
from profiler.quant.ops.gemm import FakeQuantGemm, IntegerGemm
from profiler.quant.states import named_fake_quants
from tests.models import CalledTwice, Failing, InPlaceRelu, Residual, SharedModule, Stubbed, make
from tests.quant.stages import FRONT_ENDS, calibrate

QUICK = {"num_steps": 30}


class One(Stubbed):
    """One op, an activation behind it."""

    def __init__(self, op: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.op, self.activation = op, activation or nn.Identity()

    def body(self, x: Any) -> Any:
        return self.activation(self.op(x))


OPS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (9, 6)),
    "linear_3d_no_bias": (lambda: nn.Linear(6, 5, bias=False), (2, 9, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=2), (2, 3, 9, 9)),
    "conv2d_reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 9, 9)),
    "conv2d_grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
    "conv2d_depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (2, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(3, 4, 3), (2, 3, 9)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (2, 3, 6, 6)),
    "conv_transpose2d_grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
}


def batches(shape: tuple[int, ...], count: int = 3, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def only_gemm(model: nn.Module, kind: type[nn.Module] = FakeQuantGemm) -> Any:
    (op,) = [module for module in model.modules() if isinstance(module, kind)]
    return op


def flags_of(model: nn.Module) -> list[Any]:
    """Everything that must come back: flags, states, hooks, gradients."""
    modules = [
        (n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(m._modules))
        for n, m in model.named_modules()
    ]
    states = [
        (n, fq.is_observer_on, fq.is_fake_quant_on, int(fq.observer_enabled), int(fq.fake_quant_enabled))
        for n, fq in named_fake_quants(model)
    ]
    return [modules, states, [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()]]


@pytest.mark.parametrize("name", OPS)
def test_reconstruction_of_each_op_is_on_the_grid_and_no_worse(name: str) -> None:
    build, shape = OPS[name]
    model = FRONT_ENDS["eager"][0](One(build()), batches(shape), default_calib_16bit_fake_quant_qconfig)
    op = only_gemm(model)
    weight, scale = op.weight.detach().clone(), op.weight_fake_quant.scale.clone()

    (done,) = weight_reconstruction(model, batches(shape))

    assert done.name == "op"
    assert 0 < done.error <= done.nearest_error
    if not done.reason:
        assert done.error < done.nearest_error
    fake_quant = op.weight_fake_quant
    axis = fake_quant.ch_axis
    assert torch.equal(fake_quant(op.weight), op.weight)
    codes = quantize(op.weight.detach(), scale, fake_quant.info, axis)
    steps = scale if axis < 0 else scale.reshape([-1 if d == axis else 1 for d in range(weight.dim())])
    assert torch.equal(codes * steps, op.weight.detach())
    assert float((codes - (weight / steps).clamp(-128, 127)).abs().max()) < 1.0001
    assert torch.equal(only_gemm(FRONT_ENDS["eager"][1](model), IntegerGemm).weight, codes)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_reconstruction_of_a_fused_op_fits_what_the_activation_gives(activation: type[nn.Module]) -> None:
    """Far below 0 nothing matters: a channel that is never positive keeps nearest rounding, and others get better."""
    model = One(nn.Linear(16, 8), activation())
    with torch.no_grad():
        model.op.bias[:4] = -100  # type: ignore[index,operator,union-attr]
    fuse_modules(model, ["op", "activation"], inplace=True)
    mixing = torch.randn(3, 16)
    alike = [x @ mixing for x in batches((64, 3))]  # with independent features nearest rounding is the best
    prepared = FRONT_ENDS["eager"][0](model, alike, default_calib_16bit_fake_quant_qconfig)
    op = only_gemm(prepared)
    nearest = op.weight_fake_quant(op.weight).detach().clone()

    (done,) = weight_reconstruction(prepared, alike, custom_config_dict={"num_steps": 300, "weight": 0.1})

    assert done.error < 0.9 * done.nearest_error
    moved = (op.weight != nearest).sum(1)
    assert int(moved[:4].max()) <= 1  # the largest weight lies in the middle between two codes
    assert int(moved[4:].sum()) > int(moved[:4].sum())


def test_reconstruction_of_a_fused_add_uses_the_other_operand() -> None:
    class Add(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.skip = nn.Conv2d(16, 16, 3, padding=1), FloatFunctional()

        def body(self, x: Any) -> Any:
            return self.skip.add(self.conv(x), x)

    torch.manual_seed(0)
    model = Add()
    fuse_modules(model, ["conv", "skip"], inplace=True)
    prepared = FRONT_ENDS["eager"][0](model, batches((2, 16, 8, 8)), default_calib_16bit_fake_quant_qconfig)

    (done,) = weight_reconstruction(prepared, batches((2, 16, 8, 8)), custom_config_dict={"num_steps": 1000})

    assert done.error < done.nearest_error


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("network", [SharedModule, CalledTwice, InPlaceRelu, Residual])
def test_reconstruction_keeps_flags_states_and_hooks(front_end: str, network: type[nn.Module]) -> None:
    prepare, convert = FRONT_ENDS[front_end]
    model = prepare(make(network), batches((2, 3, 8, 8)))
    before = flags_of(model)

    done = weight_reconstruction(model, batches((2, 3, 8, 8)), custom_config_dict=QUICK)

    assert flags_of(model) == before
    assert all(op.error <= op.nearest_error for op in done)
    convert(model)(batches((2, 3, 8, 8))[0])


def test_reconstruction_of_a_shared_op_fits_all_its_calls() -> None:
    model = FRONT_ENDS["eager"][0](make(SharedModule), batches((2, 3, 8, 8)))
    done = weight_reconstruction(model, batches((2, 3, 8, 8)), custom_config_dict=QUICK)
    assert [op.name for op in done] == ["first"]


@pytest.mark.parametrize("state", [FakeQuantState.QAT, FakeQuantState.CALIBRATION])
def test_reconstruction_brings_flags_back_after_an_error(state: FakeQuantState) -> None:
    model = FRONT_ENDS["eager"][0](make(Failing), batches((2, 3, 8, 8)))
    if state is FakeQuantState.QAT:
        model.train()
    set_fake_quantize(model, state)
    before, weights = flags_of(model), copy.deepcopy(model.state_dict())
    model.inner.fails = True

    with pytest.raises(ValueError, match="planted"):
        weight_reconstruction(model, batches((2, 3, 8, 8)), custom_config_dict=QUICK)

    assert flags_of(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_reconstruction_is_the_same_twice_and_draws_no_global_random_number() -> None:
    model = FRONT_ENDS["eager"][0](make(Residual), batches((2, 3, 8, 8)))
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    state = torch.get_rng_state()

    done = [weight_reconstruction(m, batches((2, 3, 8, 8)), custom_config_dict=QUICK) for m in (first, second)]

    assert done[0] == done[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_reconstruction_leaves_excluded_and_frozen_ops_alone() -> None:
    model = FRONT_ENDS["eager"][0](make(Residual), batches((2, 3, 8, 8)))
    head, stem = model.head.weight.clone(), model.stem.convolution.weight.clone()
    freeze_part(model, "head")

    done = weight_reconstruction(model, batches((2, 3, 8, 8)), custom_config_dict={**QUICK, "exclude_prefix": ["stem"]})

    assert [op.name for op in done] == ["block.convolution", "head"]
    assert [bool(op.reason) for op in done] == [False, True]
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.stem.convolution.weight, stem)


def test_reconstruction_leaves_tied_weights_alone_and_says_so() -> None:
    class Tied(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def body(self, x: Any) -> Any:
            return self.second(self.first(x))

    model = FRONT_ENDS["eager"][0](Tied(), batches((8, 4)))
    assert ["the same weight" in op.reason for op in weight_reconstruction(model, batches((8, 4)))] == [True, True]


def test_reconstruction_leaves_a_live_batch_norm_alone_and_says_so() -> None:
    set_qat_mode(QATMode.WithBN)
    try:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        model = FRONT_ENDS["fx"][0](net, batches((2, 3, 8, 8)), default_qat_8bit_fake_quant_qconfig)
    finally:
        set_qat_mode(QATMode.FuseBN)
    (done,) = weight_reconstruction(model, batches((2, 3, 8, 8)))
    assert "batch norm is live" in done.reason


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"steps": 3}, "num_batches, num_steps, exclude_prefix, warm_up, weight, b_range, learning_rate, seed"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"warm_up": 2}, "warm_up=2"),
        ({"b_range": [2, 20]}, "b_range"),
        ({"exclude_prefix": ["stemm"]}, "nearest names are stem"),
    ],
)
def test_reconstruction_refuses_wrong_settings(config: dict[str, Any], message: str) -> None:
    model = FRONT_ENDS["eager"][0](make(Residual), batches((2, 3, 8, 8)))
    with pytest.raises(ConfigError, match=message):
        weight_reconstruction(model, batches((2, 3, 8, 8)), custom_config_dict=config)


def test_reconstruction_refuses_float_and_uncalibrated_models() -> None:
    with pytest.raises(PrepareError, match="has no fake quants"):
        weight_reconstruction(make(Residual), batches((2, 3, 8, 8)))
    model = make(Residual)
    model.qconfig = default_calib_8bit_fake_quant_qconfig
    with pytest.raises(NotCalibratedError):
        weight_reconstruction(prepare_qat(model), batches((2, 3, 8, 8)))


def test_reconstruction_keeps_the_inputs_of_one_op_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """When an op's calls are collected, the tensors that were kept for the ops before it are gone."""
    import weakref

    from profiler.quant.calibration import reconstruction

    kept: list[weakref.ref[Tensor]] = []
    collect = reconstruction.collect_calls

    def watched(*args: Any) -> Any:
        assert not [ref for ref in kept if ref() is not None]
        calls = collect(*args)
        kept.extend(weakref.ref(call.target) for call in calls)
        return calls

    monkeypatch.setattr(reconstruction, "collect_calls", watched)
    model = calibrate(FRONT_ENDS["eager"][0](make(Residual), batches((2, 3, 8, 8))), batches((2, 3, 8, 8)))
    weight_reconstruction(model, batches((2, 3, 8, 8)), custom_config_dict=QUICK)
    assert len(kept) == 9
