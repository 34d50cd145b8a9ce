from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from profiler.quant.record.recorder import record_runs
from tests.models import CalledTwice, make
from tests.quant.record.stages import rows, run_of


class Code(nn.Module):
    """Any code between two linear layers, one of which is shared."""

    def __init__(self, code: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)
        self.register_buffer("offset", torch.ones(4))
        self.code = [code]

    def forward(self, x: Tensor) -> Any:
        return self.code[0](self, x)


def graph_of(code: Callable[[Any, Tensor], Any], *batches: Any) -> fx.Graph:
    return record_runs(Code(code).eval(), [run_of(b) for b in batches or rows(2, 4, count=1)])


def ops(graph: fx.Graph) -> list[str]:
    return [n.meta["path"] for n in graph.nodes if n.op == "call_module" or n.meta.get("function") not in (None, "dir")]


def node(graph: fx.Graph, path: str, call: int = 0) -> fx.Node:
    return next(n for n in graph.nodes if n.meta.get("path") == path and n.meta.get("call") == call)


def test_record_names_modules_and_functions_in_order() -> None:
    graph = graph_of(lambda m, x: torch.cat([F.relu(m.first(x)) + 1, m.second(x) + x], 1))
    assert ops(graph) == [
        "first", "_generated_relu_0", "_generated_add_0", "second", "_generated_add_1", "_generated_cat_0",
    ]  # fmt: skip
    assert [n.name for n in graph.nodes if n.op == "placeholder"] == ["x"]
    assert node(graph, "_generated_add_1").all_input_nodes == [node(graph, "second"), node(graph, "input x")]
    assert node(graph, "_generated_add_1").meta["source"].startswith(__file__)


def test_record_shared_module_is_one_path_with_calls() -> None:
    graph = graph_of(lambda m, x: m.first(m.first(m.first(x))))
    assert [(n.meta["path"], n.meta["call"]) for n in graph.nodes if n.op == "call_module"] == [
        ("first", 0), ("first", 1), ("first", 2),
    ]  # fmt: skip


def test_record_functions_of_a_submodule_belong_to_it() -> None:
    graph = record_runs(make(CalledTwice).eval(), [((torch.rand(2, 3, 8, 8),), {})])
    scopes = {n.meta["scope"] for n in graph.nodes if n.op == "call_function" and n.meta["function"] != "dir"}
    assert scopes
    assert all(scope in dict(make(CalledTwice).named_modules()) for scope in scopes)


def test_record_in_place_function_gives_the_new_value_to_later_readers() -> None:
    def code(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        y += m.second(x)
        z: Tensor = m.relu(y)
        return z * y

    graph = graph_of(code)
    assert node(graph, "relu").args == (node(graph, "_generated_add_0"),)
    assert set(node(graph, "_generated_mul_0").args) == {node(graph, "relu")}  # both names see what relu wrote


def test_record_write_through_a_view_marks_all_that_share_the_memory() -> None:
    def code(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        y[:, :2].mul_(0.5)
        z: Tensor = m.second(y)
        return z

    graph = graph_of(code)
    assert node(graph, "first").meta["shares_memory"]
    assert node(graph, "_generated_mul_0").meta["writes"]
    assert "shares_memory" not in node(graph, "second").meta


def test_record_nests_get_nodes_that_pick_their_tensors() -> None:
    def code(m: Any, x: Tensor) -> Any:
        a, b = m.first(x).chunk(2, 1)
        return {"sum": a + b, "both": [a, (b, None)], "number": 3}

    graph = graph_of(code)
    picked = node(graph, "_generated_add_0").all_input_nodes
    assert [n.args[1] for n in picked] == [0, 1]
    assert {n.args[0] for n in picked} == {node(graph, "_generated_chunk_0")}
    output = next(n for n in graph.nodes if n.op == "output")
    assert {node(graph, "_generated_add_0"), *picked} <= set(output.all_input_nodes)


def test_record_kinds_tell_floats_integers_nests_and_constants() -> None:
    def code(m: Any, x: Tensor) -> Any:
        y = m.first(x)
        index = y.argmax(1)
        mask = torch.arange(4) * 2.0
        return m.second(y) * mask * m.offset * torch.tensor(2.0) + y.max(1)[0][:, None], index

    graph = graph_of(code)
    assert node(graph, "first").meta["kind"] == "float"
    assert node(graph, "_generated_argmax_0").meta["kind"] == "int"
    assert node(graph, "_generated_max_0").meta["kind"] == "tensors"
    made = [n for n in graph.nodes if n.op == "placeholder" and n.meta.get("constant")]
    assert [n.meta["kind"] for n in made] == ["float", "int"]  # a constant tensor; a number
    assert [n.target for n in graph.nodes if n.op == "get_attr"] == ["offset"]


def test_record_reads_of_facts_are_readers() -> None:
    graph = graph_of(lambda m, x: m.second(m.first(x).view(x.shape[0], 4)))
    facts = [n for n in graph.nodes if n.meta.get("function") == "shape"]
    assert [n.all_input_nodes for n in facts] == [[node(graph, "input x")]]


def test_record_keyword_inputs_have_their_names() -> None:
    graph = graph_of(lambda m, x: m.first(x), {"x": rows(2, 4)[0]})
    assert [n.name for n in graph.nodes if n.op == "placeholder"] == ["x"]


def test_record_second_run_on_the_same_way_adds_nothing() -> None:
    once, twice = (graph_of(lambda m, x: m.first(x) + 1, *rows(2, 4, count=c)) for c in (1, 2))
    assert ops(once) == ops(twice)
    assert len(once.nodes) == len(twice.nodes)


def test_record_runs_on_two_ways_lie_one_behind_the_other() -> None:
    def code(m: Any, x: Tensor) -> Any:
        return m.first(x) + 1 if float(x[0, 0]) > 0 else m.second(x) * 2

    up = torch.ones(2, 4)
    graph = graph_of(code, up, -up, up * 3)
    asked = ["_generated_getitem_0", "_generated_float_0"]
    found = [path for path in ops(graph) if path not in asked]
    assert found == ["first", "_generated_add_0", "second", "_generated_mul_0"]
    assert node(graph, "second").meta["record"] == node(graph, "first").meta["record"] + 1
    assert len(next(n for n in graph.nodes if n.op == "output").args[0]) == 2


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * 2


def test_record_value_that_unseen_code_reads_is_marked() -> None:
    graph = graph_of(lambda m, x: m.second(scripted(m.first(x)) + x))
    assert node(graph, "first").meta["read_unseen"]
    assert not any(n.meta.get("read_unseen") for n in graph.nodes if n is not node(graph, "first"))


def test_record_vmapped_code_is_unseen() -> None:
    graph = graph_of(lambda m, x: m.second(torch.vmap(lambda row: row * 2)(m.first(x))))
    assert node(graph, "first").meta["read_unseen"]


def test_record_functions_of_an_ops_own_hooks_belong_to_the_code_around_it() -> None:
    model = Code(lambda m, x: m.second(m.first(x))).eval()
    model.first.register_forward_hook(lambda module, given, output: output * 2)
    model.second.register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    graph = record_runs(model, [run_of(rows(2, 4)[0])])
    assert ops(graph) == ["first", "_generated_mul_0", "_generated_add_0", "second"]


def test_record_of_a_forward_that_raises_leaves_no_hook() -> None:
    model = Code(lambda m, x: m.first(x) @ torch.ones(7)).eval()
    with pytest.raises(RuntimeError, match="mat"):
        record_runs(model, [run_of(rows(2, 4)[0])])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
