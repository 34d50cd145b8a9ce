from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from profiler.errors import ConfigError, ModelError
from profiler.quant import FakeQuantState, nan_check, set_fake_quantize
from tests.models import Stubbed
from tests.quant.stages import eager, fx


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(2, 2), Inner()

    def forward(self, x: Any) -> Any:
        return self.inner(self.inner(self.first(x)))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.act = nn.Linear(2, 2, bias=False), nn.ReLU()

    def forward(self, x: Any) -> Any:
        return self.act(torch.log(self.gain(x).abs() + 1))


def test_nan_check_names_the_module_that_made_it_and_whether_inputs_were_finite() -> None:
    model = Net()
    model.first.weight.data[0, 0] = torch.inf
    with nan_check(model), pytest.raises(ModelError, match="first made NaN or Inf; its inputs are finite"):
        model(torch.ones(1, 2))
    with nan_check(model), pytest.raises(ModelError, match=r"first made .* its inputs hold some already"):
        model(torch.full((1, 2), torch.nan))


def test_nan_check_names_function_and_call_number() -> None:
    model = Net()
    model.inner.gain.weight.data.fill_(0.0)
    real = torch.log
    calls = []

    class Second(Inner):
        def forward(self, x: Any) -> Any:
            calls.append(1)
            return real(self.act(self.gain(x)) + 1 - int(len(calls) > 1))

    model.inner = Second()
    model.inner.gain.weight.data.fill_(0.0)
    with nan_check(model), pytest.raises(ModelError, match=r"inner\.log_0\(1\) made NaN or Inf; its inputs are finite"):
        model(torch.ones(1, 2))


def test_nan_check_leaves_no_hook_and_finite_models_alone() -> None:
    model = Net()
    x = torch.ones(1, 2)
    with nan_check(model):
        y = model(x)
    assert torch.equal(y, model(x))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nan_check_backward_names_the_op() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(2, eps=0.0)

        def forward(self, x: Any) -> Any:
            return self.norm(x)

    model = Root()
    x = torch.zeros(1, 2, requires_grad=True)
    with nan_check(model, "backward"), pytest.raises(ModelError, match="backward pass of norm made NaN or Inf"):
        model(x).nan_to_num().sum().backward()
    with pytest.raises(ConfigError, match="use 'forward' or 'backward'"), nan_check(model, "both"):
        pass


class InPlace(nn.Module):
    """A residual block that writes over its activations; `norm` divides by 0 at constant inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(2, 2), nn.ReLU6(inplace=True)
        self.norm, self.side, self.same = nn.LayerNorm(2, eps=0.0), nn.Linear(2, 2), nn.Identity()
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Any) -> Any:
        y = self.drop(self.same(self.act(self.first(x))))
        return self.side(y).sum() + self.norm(y).nan_to_num().sum()


@pytest.mark.parametrize("is_training", [True, False])
def test_nan_check_backward_works_with_results_written_in_place(is_training: bool) -> None:
    torch.manual_seed(0)
    model = InPlace().train(is_training)
    model.norm.eps = 1e-5
    x = torch.rand(3, 2, requires_grad=True)
    torch.manual_seed(1)
    model(x).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.manual_seed(1)
    with nan_check(model, "backward"):
        model(x).backward()
    actual = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(actual) == 6
    assert all(torch.allclose(a, e) for a, e in zip(actual, expected, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nan_check_backward_names_the_one_of_two_readers_that_made_it() -> None:
    model = InPlace().eval()
    model.first.weight.data.fill_(1.0)
    model.first.bias.data.fill_(1.0)
    with nan_check(model, "backward"), pytest.raises(ModelError, match="backward pass of norm made NaN or Inf"):
        model(torch.ones(1, 2)).backward()


def test_nan_check_backward_names_a_module_that_works_in_place() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ELU(alpha=float("inf"), inplace=True), nn.Linear(2, 2))
    model[0].weight.data.fill_(-1.0)
    with nan_check(model, "backward"), pytest.raises(ModelError, match="backward pass of 1 made NaN or Inf"):
        model(torch.ones(1, 2)).nan_to_num().sum().backward()


def test_nan_check_backward_takes_prepared_models() -> None:
    class Block(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 1), nn.ReLU6(inplace=True)

        def body(self, x: Any) -> Any:
            y = self.act(self.conv(x) + x)
            y += x
            return y

    x = torch.randn(2, 3, 4, 4)
    model = eager(Block().eval(), [x]).train()
    set_fake_quantize(model, FakeQuantState.QAT)
    model(x).sum().backward()
    expected = model.conv.weight.grad.clone()
    model.zero_grad()
    with nan_check(model, "backward"):
        model(x).sum().backward()
    assert torch.allclose(model.conv.weight.grad, expected, rtol=0.05, atol=1e-3)


def test_nan_check_names_the_users_line_also_in_a_traced_graph() -> None:
    class Block(Stubbed):
        def body(self, x: Any) -> Any:
            return torch.exp(x + x)

    model = fx(Block().eval(), [torch.rand(4)])
    line = r"made NaN or Inf.*test_finite\.py:\d+ \(return torch\.exp\(x \+ x\)\)"
    model._generated_add_0.activation_post_process.scale.fill_(torch.nan)
    with nan_check(model), pytest.raises(ModelError, match=line):
        model(torch.rand(4))
