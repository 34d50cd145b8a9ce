from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import PrepareError
from profiler.quant.fx.functions import functions_to_modules
from profiler.quant.fx.trace import trace
from profiler.quant.naming import op_name
from tests.models import CalledTwice, DataDependent, NestedLoop, Residual, UntraceableMiddle, images, make


def op_names(model: nn.Module) -> list[str]:
    traced = trace(model)
    functions_to_modules(model, traced.graph)
    return [op_name(str(n.target)) for n in traced.graph.nodes if n.op == "call_module"]


def test_trace_names_are_module_paths_and_numbered_functions() -> None:
    names = op_names(make(Residual))
    assert names[:4] == ["quant", "stem.convolution", "stem.normalisation", "stem.activate"]
    assert {"add_0", "cat_0", "max_pool2d_0", "flatten_0", "pool", "head", "dequant"} <= set(names)


def test_trace_module_called_twice_numbers_from_zero_in_each_call() -> None:
    names = op_names(make(CalledTwice))
    assert names.count("inner.add_0") == names.count("inner.add_1") == 2
    assert names.count("add_0") == 1


def test_trace_arithmetic_on_sizes_is_not_counted() -> None:
    class Sized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n = x.size(0) * x.shape[1] + 0
            return x.reshape(n, -1) + x.reshape(n, -1)

    assert [n for n in op_names(Sized()) if n.startswith(("add", "mul"))] == ["add_0"]


def test_trace_submodule_that_cannot_be_traced_stays_a_leaf_and_is_named() -> None:
    traced = trace(make(UntraceableMiddle))
    assert list(traced.untraceable) == ["part"]
    assert "cannot be traced symbolically (TraceError" in traced.untraceable["part"]
    assert "part" in [str(n.target) for n in traced.graph.nodes]


def test_trace_untraceable_root_is_an_error_that_names_the_other_front_end() -> None:
    with pytest.raises(PrepareError, match=r"DataDependent.forward cannot be traced .*prepare_qat"):
        trace(DataDependent())


def test_trace_given_leaves_stay_leaves() -> None:
    assert "steps.0" in [str(n.target) for n in trace(make(NestedLoop), {"steps.0"}).graph.nodes]


@pytest.mark.parametrize("cls", [Residual, CalledTwice, NestedLoop])
def test_functions_to_modules_graph_computes_the_same(cls: type[nn.Module]) -> None:
    model = make(cls)
    expected = model(images()[0])
    traced = trace(model)
    functions_to_modules(model, traced.graph)
    graph_module: Any = torch.fx.GraphModule(model, traced.graph)
    assert torch.equal(graph_module(images()[0]), expected)


def test_trace_same_function_in_two_spellings_shares_the_count() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) + torch.relu(x.add(1).relu())

    assert sorted(op_names(Two())) == ["add_0", "add_1", "relu_0", "relu_1", "relu_2"]


class _WritesThroughView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        y.view(-1).add_(1)
        return y


def test_trace_write_through_a_view_keeps_the_module_a_leaf() -> None:
    traced = trace(nn.Sequential(nn.Conv2d(2, 2, 1), _WritesThroughView()))

    assert "overwrites a view" in traced.untraceable["1"]


def test_trace_write_through_a_view_in_the_root_is_refused() -> None:
    with pytest.raises(PrepareError, match="add overwrites a view of a value that is read again later"):
        trace(_WritesThroughView())
