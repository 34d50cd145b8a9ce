from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from profiler.errors import ConfigError
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    QATMode,
    QuantStub,
    convert,
    convert_fx,
    default_qat_8bit_fake_quant_qconfig,
    fuse_fx,
    fuse_modules,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
    set_qat_mode,
)
from profiler.quant.ops.gemm import FakeQuantGemm, FusedGemm, IntegerGemm
from tests.models import IMAGE, ConvBnRelu, Residual
from tests.quant.onnx_check import assert_equals_onnx

BASES: dict[str, Any] = {
    "conv": lambda: (nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)),
    "conv_bias": lambda: (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
    "transposed": lambda: (nn.ConvTranspose2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
    "transposed_grouped": lambda: (nn.ConvTranspose2d(3, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6)),
}


@pytest.fixture(autouse=True)
def with_bn() -> Iterator[None]:
    set_qat_mode(QATMode.WithBN)
    yield
    set_qat_mode(QATMode.FuseBN)


class Net(nn.Module):
    def __init__(self, base: str) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.bn = BASES[base]()
        self.relu = nn.ReLU()
        with torch.no_grad():
            self.bn.running_mean.uniform_(-1, 1)
            self.bn.running_var.uniform_(0.3, 3)
            self.bn.weight.uniform_(0.5, 2)
            self.bn.bias.uniform_(-1, 1)

    def forward(self, x: Any) -> Any:
        return self.dequant(self.relu(self.bn(self.conv(self.quant(x)))))


def batch(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) + 0.5


def prepared_of(front_end: str, model: nn.Module) -> Any:
    if front_end == "fx":
        return prepare_qat_fx(model, {"": default_qat_8bit_fake_quant_qconfig})
    model = fuse_modules(model, ["conv", "bn", "relu"])
    model.qconfig = default_qat_8bit_fake_quant_qconfig  # type: ignore[assignment]
    return prepare_qat(model)


def only(model: nn.Module, cls: Any) -> Any:
    (found,) = [m for m in model.modules() if isinstance(m, cls)]
    return found


@pytest.mark.parametrize("base", BASES)
def test_r26_with_bn_fused_model_keeps_the_norm_as_child_and_equals_float(base: str) -> None:
    model, x = Net(base).eval(), batch()
    for fused in (fuse_modules(model, ["conv", "bn", "relu"]), fuse_fx(model)):
        op = only(fused, FusedGemm)
        assert isinstance(op.bn, nn.BatchNorm2d)
        assert torch.equal(op.weight, model.conv.weight)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r26_with_bn_statistics_move_in_training_as_those_of_the_float_model(base: str, front_end: str) -> None:
    model = Net(base).train()
    reference = copy.deepcopy(model)
    prepared = prepared_of(front_end, model)
    norm = only(prepared, FakeQuantGemm).bn
    before = norm.running_mean.clone()
    prepared(batch())
    reference(batch())
    assert not torch.equal(norm.running_mean, before)
    torch.testing.assert_close(norm.running_mean, reference.bn.running_mean, rtol=0.02, atol=0.02)
    torch.testing.assert_close(norm.running_var, reference.bn.running_var, rtol=0.05, atol=0.05)
    prepared.eval()
    after = norm.running_mean.clone()
    prepared(batch(1))
    assert torch.equal(norm.running_mean, after)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r26_with_bn_folding_changes_the_output_less_than_1e_4(base: str, front_end: str) -> None:
    prepared = prepared_of(front_end, Net(base).train())
    for seed in range(3):
        prepared(batch(seed))
    op = only(prepared, FakeQuantGemm)
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState._FLOAT)
    x = batch(5)
    folded = prepared(x)
    unfolded = torch.relu(op.bn(op.gemm(x, op.weight, op.bias)))
    assert float((folded - unfolded).detach().abs().max()) < 1e-4


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_with_bn_converted_model_equals_qat_model_within_a_code(base: str, front_end: str) -> None:
    prepared = prepared_of(front_end, Net(base).train())
    for seed in range(3):
        prepared(batch(seed))
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    converted = (convert_fx if front_end == "fx" else convert)(prepared)
    op = only(converted, IntegerGemm)
    assert not [m for m in converted.modules() if isinstance(m, nn.BatchNorm2d)]
    apart = (converted(batch(5)) - prepared(batch(5))).detach().abs() / op.out_scale
    assert float(apart.max()) < 1.01
    assert float((apart < 0.01).double().mean()) > 0.999


def test_with_bn_training_moves_weight_and_norm_parameters_and_lowers_the_loss() -> None:
    torch.manual_seed(0)
    prepared = prepared_of("eager", Net("conv_bias").train())
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    target = torch.relu(torch.randn(8, 4, 6, 6))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = (prepared(batch()) - target).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    op = only(prepared, FakeQuantGemm)
    for parameter in (op.weight, op.bn.weight, op.bn.bias):
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
        assert float(parameter.grad.abs().max()) > 0
    assert losses[-1] < 0.95 * losses[0]


def test_with_bn_frozen_norm_trains_the_folded_weight() -> None:
    prepared = prepared_of("eager", Net("conv_bias").train())
    op = only(prepared, FakeQuantGemm)
    prepared(batch())
    op.bn.eval()
    before = op.bn.running_mean.clone()
    prepared(batch(1)).square().mean().backward()
    assert torch.equal(op.bn.running_mean, before)
    assert float(op.weight.grad.abs().max()) > 0
    assert float(op.bn.weight.grad.abs().max()) > 0


def test_with_bn_zero_gain_stays_finite() -> None:
    model = Net("conv").train()
    with torch.no_grad():
        model.bn.weight[1] = 0
    prepared = prepared_of("eager", model)
    prepared(batch()).square().mean().backward()
    op = only(prepared, FakeQuantGemm)
    assert bool(op.weight.grad.isfinite().all())
    assert bool(op.bn.weight.grad.isfinite().all())


def test_with_bn_second_step_of_fusion_keeps_the_norm() -> None:
    model, x = Net("conv").eval(), batch()
    fused = fuse_modules(fuse_modules(model, ["conv", "bn"]), ["conv", "relu"])
    assert isinstance(fused.conv.bn, nn.BatchNorm2d)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


def test_fuse_bn_is_the_default_and_folds_at_once() -> None:
    set_qat_mode(QATMode.FuseBN)
    model, x = Net("conv").eval(), batch()
    fused = fuse_modules(model, ["conv", "bn", "relu"])
    assert only(fused, FusedGemm).live_norm is None
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


def test_set_qat_mode_other_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"QAT mode 'bn' is unknown.*QATMode\.WithBN"):
        set_qat_mode("bn")  # type: ignore[arg-type]


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r26_with_bn_network_from_prepare_through_training_to_the_file(front_end: str) -> None:
    torch.manual_seed(0)
    model: Any = Residual().train()
    trained = copy.deepcopy(model)
    blocks = ("stem", "block")
    if front_end == "fx":
        qat: Any = prepare_qat_fx(model, {"": default_qat_8bit_fake_quant_qconfig})
    else:
        for name in blocks:
            fuse_modules(getattr(model, name), list(ConvBnRelu.fuse_names), inplace=True)
        model.qconfig = default_qat_8bit_fake_quant_qconfig
        qat = prepare_qat(model)
    ops = {name: next(m for m in getattr(qat, name).modules() if isinstance(m, FakeQuantGemm)) for name in blocks}
    before = {name: op.bn.running_mean.clone() for name, op in ops.items()}
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        qat(torch.randn(IMAGE)).square().mean().backward()
        optimizer.step()
    assert not any(torch.equal(op.bn.running_mean, before[name]) for name, op in ops.items())

    qat.eval()
    x = torch.randn(IMAGE)
    with torch.no_grad():  # the same parameters, unfused
        for name, op in ops.items():
            part = getattr(trained, name)
            part.convolution.weight.copy_(op.weight)
            part.normalisation.load_state_dict(op.bn.state_dict())
        trained.head.load_state_dict({"weight": qat.head.weight, "bias": qat.head.bias})
        set_fake_quantize(qat, FakeQuantState._FLOAT)
        assert float((qat(x) - trained.eval()(x)).abs().max()) < 1e-4
        set_fake_quantize(qat, FakeQuantState.VALIDATION)
        converted = (convert_fx if front_end == "fx" else convert)(qat)
        assert float((converted(x) - qat(x)).abs().max()) < 0.05 * float(qat(x).abs().max())
    assert not [m for m in converted.modules() if isinstance(m, nn.BatchNorm2d)]
    assert_equals_onnx(converted, x)
