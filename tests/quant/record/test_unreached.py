from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.errors import NotCalibratedError
from profiler.quant import FakeQuantState, convert, set_fake_quantize
from profiler.quant.modules import has_hooks, take_hooks
from profiler.quant.record.unreached import leave_unreached_in_float
from tests.quant.record.stages import calibrated, prepared, reasons, relative_error
from tests.quant.stages import calibrate

UP = torch.tensor([[3.0, -1.0, 0.5, 2.0], [1.0, 2.0, -2.5, 0.1], [-1.0, 0.3, 1.5, -0.7]])
DOWN = UP.flip(0)
REASON = "no calibration batch reached it: it runs in float"


class Rare(nn.Module):
    """A way that only some inputs take."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rare, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        if float(x[0, 0]) < 0:
            y = torch.tanh(self.rare(y)) * y
        return self.out(y)


def test_ops_that_no_calibration_batch_reached_run_in_float_and_are_named() -> None:
    net = Rare().eval()
    model = calibrate(prepared(net, UP, DOWN), [UP, UP])
    assert "rare" not in reasons(model)
    converted = convert(model)
    assert {op for op, why in reasons(converted).items() if why == REASON} == {"rare", "tanh_0", "mul_0"}
    for x in (UP, DOWN):
        assert relative_error(net(x), converted(x)) < 0.05
    assert "rare" not in reasons(model)  # convert works on a copy


def test_inplace_names_the_same_ops_it_returns() -> None:
    model = calibrate(prepared(Rare(), UP, DOWN), [UP])
    assert set(leave_unreached_in_float(model)) == {"rare", "tanh_0", "mul_0"}
    assert model.rare.activation_post_process is None
    assert not hasattr(model, "_generated_tanh_0")


def test_all_reached_nothing_is_left() -> None:
    assert leave_unreached_in_float(calibrated(Rare(), [UP, DOWN], num_runs=2)) == []


def test_forgotten_calibration_is_an_error_and_leaves_nothing() -> None:
    model = prepared(Rare(), UP, DOWN).eval()
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    assert leave_unreached_in_float(model) == []
    with pytest.raises(NotCalibratedError, match="activations have no scale"):
        convert(model)


def test_stub_that_no_batch_reached_hands_values_on() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, extra: Tensor) -> Tensor:
            return self.first(x) if float(x[0, 0]) > 0 else self.second(extra)

    net = Late().eval()
    model = prepared(net, (UP, UP), (DOWN, UP)).eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model(UP, UP)
    converted = convert(model)
    assert relative_error(net(DOWN, UP), converted(DOWN, UP)) < 0.01  # its weights are rounded all the same
    assert relative_error(net(UP, UP), converted(UP, UP)) < 0.05


def test_take_hooks_gives_a_module_the_hooks_of_another() -> None:
    old, new = nn.Linear(2, 2), nn.Identity()
    assert not has_hooks(old)
    old.register_forward_hook(lambda module, given, output: output + 1)
    take_hooks(new, old)
    assert has_hooks(new)
    assert torch.equal(new(torch.zeros(2)), torch.ones(2))
    new._forward_hooks.clear()
    assert has_hooks(old)
