from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from profiler.quant.fx.functions import functions_to_modules
from profiler.quant.fx.trace import trace


def graph_module_of(model: nn.Module) -> Any:
    traced = trace(model)
    functions_to_modules(model, traced.graph)
    return fx.GraphModule(model, traced.graph)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        y += x
        y.mul_(2)
        return y + y.size(0)


class Parts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        height = x.shape[-1] // 2
        values, _ = x.max(1)
        return (first + second)[..., :height] + values[:, None, :, :height]


class Options(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(tensors=[x, x], dim=1).mean((2, 3), keepdim=True).expand(-1, -1, 2, 2).permute(0, 2, 3, 1)


@pytest.mark.parametrize("cls", [InPlace, Parts, Options])
def test_functions_to_modules_computes_the_same(cls: type[nn.Module]) -> None:
    x = torch.rand(2, 4, 6, 6)
    expected = cls()(x.clone())
    assert torch.equal(graph_module_of(cls())(x.clone()), expected)


def test_functions_to_modules_in_place_functions_leave_the_input_alone() -> None:
    x = torch.rand(2, 4, 6, 6)
    before = x.clone()
    graph_module_of(InPlace())(x)
    assert torch.equal(x, before)


def test_functions_to_modules_python_facts_stay_python() -> None:
    model = graph_module_of(Parts())
    names = {n for n, _ in model.named_modules()}
    assert not names & {"_generated_getattr_0", "_generated_floordiv_0", "_generated_size_0"}
    assert "_generated_chunk_0" in names


def test_functions_to_modules_registers_in_the_calling_module() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = InPlace()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + x

    names = {n for n, _ in graph_module_of(Outer()).named_modules()}
    assert {"_generated_add_0", "inner._generated_add_0", "inner._generated_add_1", "inner._generated_mul_1"} <= names
