from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from profiler.quant.naming import (
    NOT_OPS,
    call_name,
    canonical_function_name,
    generated_name,
    is_reflected,
    op_name,
    parse_generated,
)

SPELLINGS: list[tuple[str, Callable[[Tensor, Tensor], Any]]] = [
    ("add", lambda x, y: x + y),
    ("add", lambda x, y: torch.add(x, y)),
    ("add", lambda x, y: x.add(y)),
    ("add", lambda x, y: x.clone().add_(y)),
    ("add", lambda x, y: operator.iadd(x.clone(), y)),
    ("add", lambda x, y: 1 + x),
    ("sub", lambda x, y: 1 - x),
    ("mul", lambda x, y: torch.multiply(x, y)),
    ("div", lambda x, y: x / y),
    ("matmul", lambda x, y: x @ y.T),
    ("cat", lambda x, y: torch.concat([x, y])),
    ("relu", lambda x, y: F.relu(x)),
    ("relu", lambda x, y: x.relu()),
    ("relu", lambda x, y: torch.relu_(x.clone())),
    ("getitem", lambda x, y: x[0]),
    ("T", lambda x, y: x.T),
]


class NameRecorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(canonical_function_name(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "call"), SPELLINGS)
def test_canonical_function_name_all_spellings_are_one(name: str, call: Callable[[Tensor, Tensor], Any]) -> None:
    with NameRecorder() as recorder:
        call(torch.rand(2, 2), torch.rand(2, 2))
    assert recorder.names[-1] == name


def test_canonical_function_name_reads_of_facts_are_no_ops() -> None:
    x = torch.rand(2, 2)
    with NameRecorder() as recorder:
        _ = x.shape, x.size(0), x.dtype, x.device, x.dim(), x.ndim, x.requires_grad, x.is_cuda, x.grad, x.numel()
    assert recorder.names
    assert set(recorder.names) <= NOT_OPS


@pytest.mark.parametrize(("path", "name"), [
    ("block._generated_add_0", "block.add_0"), ("_generated_cat_12", "cat_12"), ("a.b.conv", "a.b.conv"), ("", ""),
    ("a._generated_adaptive_avg_pool2d_3", "a.adaptive_avg_pool2d_3"), ("x._generated_add", "x._generated_add"),
])  # fmt: skip
def test_op_name_of_a_module_path(path: str, name: str) -> None:
    assert op_name(path) == name


def test_parse_generated_is_the_inverse_of_generated_name() -> None:
    assert parse_generated(generated_name("max_pool2d", 7)) == ("max_pool2d", 7)
    assert parse_generated("conv") is None


def test_call_name_later_calls_carry_their_number() -> None:
    assert [call_name("a.b", k) for k in range(3)] == ["a.b", "a.b(1)", "a.b(2)"]


@pytest.mark.parametrize(
    ("func", "reflected"),
    [
        (torch.Tensor.__rsub__, True),
        (torch.rsub, True),
        (torch.Tensor.__rdiv__, True),
        (torch.Tensor.__rpow__, True),
        (torch.Tensor.__rmatmul__, True),
        (torch.Tensor.__radd__, False),
        (torch.Tensor.sub_, False),
        (torch.sub, False),
    ],
)
def test_is_reflected_names_the_functions_whose_operands_are_reversed(func: Any, reflected: bool) -> None:
    assert is_reflected(func) is reflected
