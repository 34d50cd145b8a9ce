"""Views, in-place writes, shared memory, and what cannot be recorded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant.deploy.export import record_model
from tests.quant.deploy.functions import Function, assert_same_in_onnx, ints, rand

X = rand(2, 4, 6, 6)


def box_decode(x: Tensor) -> Tensor:
    boxes = x.permute(0, 2, 3, 1).contiguous()
    boxes[..., :2] *= 3
    boxes[..., 2:4] = boxes[..., 2:4].exp() + boxes[..., :2]
    return boxes.view(2, -1, 4)


def write_through_view(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 1
    row = y[0, 1]
    row.add_(5).clamp_(max=5.5)
    row[2] = 0
    return y, row


def stale_view(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x + 0
    before = y[:, :2]
    copy = before.clone()
    y.mul_(2)
    return before + 1, copy


def fill_constant(x: Tensor) -> Tensor:
    canvas = torch.zeros(2, 4, 8, 8)
    canvas[:, :, 1:7, 1:7] = x
    canvas[:, 0].fill_(3.0)
    canvas[:, 1].zero_()
    return canvas


def write_transposed(x: Tensor) -> Tensor:
    y = x.clone()
    y.transpose(1, 3)[:, 2] = 7.0
    return y


def inplace_relu(x: Tensor) -> Tensor:
    y = x - 0.1
    return y + torch.relu_(y)


def channels_last(x: Tensor) -> Tensor:
    y = x.contiguous(memory_format=torch.channels_last) * 2
    y[:, 1] += 1
    return y.flatten(1)


def in_place_other_dtype(x: Tensor) -> Tensor:
    y = torch.zeros(2, 4, 6, 6, dtype=torch.float64)
    y += x
    y[x > 0] = -1.0
    return y


def out_argument(x: Tensor) -> Tensor:
    y = torch.empty(2, 4, 6, 6)
    torch.add(x, 1, out=y)
    torch.cat([x[:1], x[1:]], out=y[:])
    return y * 2


def list_of_views(x: Tensor) -> Tensor:
    parts = list((x + 0).split(1, 1))
    parts[0].mul_(2)
    parts[3][..., 0] = parts[1][..., 0]
    return torch.cat(parts, 1)


def index_put_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[torch.tensor([0, 1]), torch.tensor([3, 2])] = x[:, 0]
    y[:, torch.tensor([True, False, False, True])] *= 2
    return y


def swapped(x: Tensor) -> Tensor:
    y = x.clone()
    first = y[:, 0].clone()
    y[:, 0] = y[:, 1]
    y[:, 1] = first
    return y


def expanded(x: Tensor) -> Tensor:
    y = x[:, :1].expand(-1, 4, -1, -1)
    return y.reshape(2, -1)[:, ::2]


FUNCTIONS = [box_decode, write_through_view, stale_view, fill_constant, write_transposed, inplace_relu, channels_last,
             in_place_other_dtype, out_argument, list_of_views, index_put_in_place, swapped, expanded]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_writing_and_reading_shared_memory_exports_as_it_runs(function: Callable[[Tensor], Any]) -> None:
    assert_same_in_onnx(function, X)


def test_in_place_on_the_input_leaves_the_callers_tensor_alone() -> None:
    x = X.clone()

    record_model(Function(lambda t: t.mul_(2)), x)

    assert torch.equal(x, X)


def test_two_inputs_in_one_memory_are_two_inputs() -> None:
    whole = rand(4, 3)
    exported = record_model(Function(lambda a, b: a - b), (whole[:2], whole[2:]))

    assert len(exported.input_names) == 2
    assert_same_in_onnx(lambda a, b: a - b, whole[:2], whole[2:])


def test_result_that_no_input_reaches_is_a_constant() -> None:
    exported = record_model(Function(lambda x: (x + 1, torch.arange(3))), X)

    assert len(exported.proto.graph.node) == 3  # Add, and a name for each output
    assert_same_in_onnx(lambda x: (x + 1, torch.arange(3)), X)


def test_python_values_from_tensors_are_named_with_their_lines() -> None:
    def branch(x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x

    exported = record_model(Function(branch), X.abs())

    assert len(exported.reads) == 1
    assert re.search(r"test_recorder.py:\d+ .*x.sum\(\) > 0", exported.reads[0])
    assert [node.op_type for node in exported.proto.graph.node].count("Mul") == 1  # the path of this input


def test_operator_without_onnx_form_names_module_operator_and_line() -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.unique(x)

    model = nn.Sequential()
    model.add_module("head", Head())

    with pytest.raises(UnsupportedOpError, match=r"head.unique_0: aten.*unique.*test_recorder.py:\d+.*no ONNX form"):
        record_model(model, X)


def test_indices_of_a_pool_have_no_form_only_where_they_are_used() -> None:
    with pytest.raises(UnsupportedOpError, match="indices of a pool"):
        record_model(Function(lambda x: nn.functional.max_pool2d(x, 2, return_indices=True)[1] + 1), X)


def test_forward_that_raises_leaves_no_hook() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError(str(self.conv(x).shape))

    model = Failing()
    with pytest.raises(ValueError, match=r"torch\.Size"):
        record_model(model, X)

    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_names_of_nodes_begin_with_the_name_of_their_op() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.conv(x))
            return (y + x) + x

    model = nn.Sequential(Block(), Block())
    exported = record_model(model, X)

    names = [node.name for node in exported.proto.graph.node]
    for name in ("0.conv", "0.conv(1)", "0.add_0", "0.add_1", "1.conv", "1.add_1"):
        assert any(n.startswith(f"{name}/") for n in names), name
    assert [mark.name for mark in exported.marks][:4] == ["0.conv", "0.conv(1)", "0.add_0", "0.add_1"]


def test_int8_arithmetic_wraps_as_in_torch() -> None:
    assert_same_in_onnx(lambda x: (x + x, x * x, x - 100), ints(50, low=-128, high=128))
