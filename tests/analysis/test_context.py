"""The index over a comparison: readers, sources, outputs, what is a module."""

from __future__ import annotations

from dataclasses import replace

from profiler.analysis.context import Context, call_key, op_of
from profiler.records import CalledCount, ModelRecord
from tests.analysis.made import comparison, context, layer, output

NET = context(
    layer("quant", kind="quant_stub"),
    layer("conv", ("quant",)),
    layer("bn", ("conv",), status="fused", accumulated=None),
    layer("relu_0", ("conv",), kind="relu"),
    layer("conv(1)", ("relu_0",)),
    layer("join", ("relu_0", "conv(1)")),
    layer("idle", status="uncalled"),
    output("join"),
)


def names(layers: object) -> list[str]:
    return [x.name for x in layers]  # type: ignore[attr-defined]


def test_layers_are_the_calls_that_ran_without_the_outputs() -> None:
    assert names(NET.layers) == ["quant", "conv", "bn", "relu_0", "conv(1)", "join"]
    assert names(NET.outputs) == ["model output"]


def test_calls_are_found_by_name_and_number() -> None:
    assert names(NET.calls_of("conv")) == ["conv", "conv(1)"]
    assert call_key(NET.by_key["conv(1)"]) == "conv(1)"
    assert op_of("block.conv(1)") == op_of("block.conv") == "block.conv"


def test_consumers_leave_fused_ops_out() -> None:
    assert names(NET.consumers_of(NET.by_key["conv"])) == ["relu_0"]


def test_behind_reaches_every_output_once() -> None:
    assert sorted(names(NET.behind(NET.by_key["relu_0"]))) == ["conv(1)", "join", "model output"]


def test_sources_look_through_ops_that_hand_on_a_scale() -> None:
    assert names(NET.sources(NET.by_key["conv(1)"])) == ["conv"]
    assert names(NET.sources(NET.by_key["join"])) == ["conv(1)", "conv"]
    assert names(NET.compared_inputs(NET.by_key["join"])) == ["relu_0", "conv(1)"]


def test_model_input_has_no_sources() -> None:
    assert NET.sources(NET.by_key["quant"]) == ()


def test_cycle_between_records_ends() -> None:
    loop = context(layer("a", ("b",), kind="relu"), layer("b", ("a",), kind="relu"))

    assert loop.sources(loop.by_key["a"]) == ()
    assert len(loop.behind(loop.by_key["a"])) == 2


def test_generated_module_of_a_function_is_no_module_of_the_user() -> None:
    called = (CalledCount("conv", "torch.nn.Conv2d", 1), CalledCount("add_0", "profiler.quant.FunctionOp[add]", 1))
    made = replace(comparison(layer("conv"), layer("add_0")), reference=ModelRecord("float", "Net", called=called))
    context = Context(made)

    assert [context.is_function(x) for x in context.layers] == [False, True]


def test_without_called_counts_the_type_tells_functions() -> None:
    made = context(layer("conv"), layer("add_0", reference_type="torch.add"))

    assert [made.is_function(x) for x in made.layers] == [False, True]
