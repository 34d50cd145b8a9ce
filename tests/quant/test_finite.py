from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from profiler.errors import ConfigError, ModelError
from profiler.quant import nan_check


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
