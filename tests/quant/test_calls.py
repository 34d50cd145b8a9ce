from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from profiler.quant.calls import CallTracker, FunctionCall


class Recorder(CallTracker):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, int]] = []

    def call_function(self, call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append((type(call.module).__name__, call.name, call.k))
        return super().call_function(call, args, kwargs)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x.shape[0] + x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) + 1
        return self.inner(self.inner(x)) + x


def record(model: nn.Module, x: Tensor) -> Recorder:
    recorder, handles = Recorder(), []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, a, n=name: recorder.enter(m, n) and None))
        handles.append(module.register_forward_hook(lambda m, a, o: recorder.leave(m), always_call=True))
    try:
        with recorder:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return recorder


def test_call_tracker_counts_per_call_of_the_calling_module() -> None:
    calls = record(Outer(), torch.rand(2, 3)).calls
    assert calls == [
        ("Outer", "relu", 0), ("Outer", "add", 0), ("Inner", "add", 0), ("Inner", "add", 1), ("Inner", "add", 0),
        ("Inner", "add", 1), ("Outer", "add", 1),
    ]  # fmt: skip


def test_call_tracker_functions_inside_an_op_are_not_counted() -> None:
    assert record(nn.Sequential(nn.Linear(3, 3)), torch.rand(2, 3)).calls == []


def test_call_tracker_raising_forward_leaves_no_frame_and_no_mode() -> None:
    model = Outer()
    recorder = Recorder()
    for module in model.modules():
        module.register_forward_pre_hook(lambda m, a: recorder.enter(m) and None)
        module.register_forward_hook(lambda m, a, o: recorder.leave(m), always_call=True)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), recorder:
        model(torch.rand(2, 4))
    assert recorder.frames == []
    assert _get_current_function_mode_stack() == []


def test_call_tracker_leave_drops_frames_an_error_left_behind() -> None:
    recorder, outer, inner = Recorder(), nn.Module(), nn.Module()
    recorder.enter(outer)
    recorder.enter(inner)
    recorder.leave(outer)
    assert recorder.frames == []
    recorder.leave(inner)


def test_call_tracker_generated_module_takes_its_functions_number() -> None:
    recorder, outer = Recorder(), nn.Module()
    frame = recorder.enter(outer)
    recorder.leave(recorder.enter(nn.ReLU(), "block._generated_add_1").module)
    assert frame.counts["add"] == 2
