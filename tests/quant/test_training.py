"""QAT: gradients reach every parameter, and a real problem is learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import (
    FakeQuantState,
    convert,
    convert_fx,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_8bit_fixed_act_fake_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
)
from profiler.quant.states import journal_of, named_fake_quants
from tests.models import (
    EAGER,
    ConvBnRelu,
    FrozenNorm,
    Residual,
    Stubbed,
    UnsupportedMiddle,
    images,
    make,
)
from tests.quant.stages import FRONT_ENDS, eager, fx

QAT = default_qat_8bit_fake_quant_qconfig
STAGE = {"eager": eager, "fx": fx}


def prepare(model: Any, front_end: str, qconfig: Any = QAT) -> Any:
    model.train()
    if front_end == "fx":
        return prepare_qat_fx(model, {"": qconfig})
    model.qconfig = qconfig
    return prepare_qat(model)


class Digits(Stubbed):
    """A small net for 8x8 digits with a residual and a fused and an unfused batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = ConvBnRelu(1, 8), ConvBnRelu(8, 8)
        self.head = nn.Linear(8 * 16, 10)

    def body(self, x: Any) -> Any:
        x = self.stem(x)
        x = F.max_pool2d(self.block(x) + x, 2)
        return self.head(x.flatten(1))


def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return x, torch.tensor(data.target)


def train(model: Any, x: Tensor, y: Tensor, steps: int, lr: float = 0.05) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    losses = []
    for step in range(steps):
        rows = slice(step * 64 % 1400, step * 64 % 1400 + 64)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def accuracy(model: Any, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x[1400:]).argmax(1) == y[1400:]).double().mean())


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("cls", EAGER)
def test_qat_gradient_reaches_every_parameter(cls: type[nn.Module], front_end: str) -> None:
    model = prepare(make(cls), front_end)
    if cls is FrozenNorm:  # what is in eval observes nothing: its scales come from calibration
        model.load_state_dict(STAGE[front_end](make(cls), images()).state_dict())
    model(images()[0]).square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert missing == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_qat_gradient_passes_a_float_part() -> None:
    model = prepare(make(UnsupportedMiddle), "fx")
    model(images()[0]).square().sum().backward()
    assert float(model.first.weight.grad.abs().sum()) > 0
    assert float(model.second.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_qat_gradient_without_rounding_equals_floats(front_end: str) -> None:
    model = make(UnfusedNet)
    prepared = prepare(make(UnfusedNet), front_end).eval()
    set_fake_quantize(prepared, FakeQuantState._FLOAT)
    for net in (model, prepared):
        net(images()[0]).square().sum().backward()
    torch.testing.assert_close(prepared.conv.weight.grad, model.conv.weight.grad, rtol=1e-4, atol=1e-4)


class UnfusedNet(Stubbed):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def body(self, x: Any) -> Any:
        x = self.conv(x)
        return F.avg_pool2d(torch.cat([x, x + x], 1), 2)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_qat_training_on_digits_lowers_the_loss_and_converts(front_end: str) -> None:
    x, y = digits()
    torch.manual_seed(0)
    model = prepare(Digits(), front_end)
    losses = train(model, x, y, 60)
    assert sum(losses[-5:]) < 0.35 * sum(losses[:5])
    model.eval()
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    integer = (convert_fx if front_end == "fx" else convert)(model)
    qat_accuracy = accuracy(model, x, y)
    assert qat_accuracy > 0.8
    assert abs(accuracy(integer, x, y) - qat_accuracy) <= 0.01
    journal = journal_of(model)
    assert journal is not None
    assert journal.has_backward_run
    assert max(journal.observed_qat.values()) == 60


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_qat_zero_learning_rate_in_eval_equals_calib(front_end: str) -> None:
    calib = STAGE[front_end](make(Residual), images())
    qat = prepare(make(Residual), front_end)
    qat.load_state_dict(calib.state_dict())
    qat.eval()
    set_fake_quantize(qat, FakeQuantState.VALIDATION)
    optimizer = torch.optim.SGD(qat.parameters(), 0.0)
    qat(images()[0]).sum().backward()
    optimizer.step()
    assert torch.equal(qat(images()[0]), calib(images()[0]))


def test_qat_fixed_activation_qconfig_keeps_calibrated_scales() -> None:
    calib = eager(make(Residual), images())
    qat = prepare(make(Residual), "eager", default_qat_8bit_fixed_act_fake_quant_qconfig)
    qat.load_state_dict(calib.state_dict())
    qat.train()
    before = {n: fq.scale.clone() for n, fq in named_fake_quants(qat) if "weight" not in n}
    qat(images()[0] * 10).sum().backward()
    assert all(torch.equal(before[n], fq.scale) for n, fq in named_fake_quants(qat) if "weight" not in n)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_calibration_leaves_parameters_and_statistics_alone(front_end: str) -> None:
    model = make(Residual)
    calib = STAGE[front_end](model, images())
    state = {k: v for k, v in calib.state_dict().items() if k.endswith(("running_mean", "num_batches_tracked"))}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert journal_of(calib) is not None
    assert not journal_of(calib).has_backward_run  # type: ignore[union-attr]
