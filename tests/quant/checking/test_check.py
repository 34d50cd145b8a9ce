"""check_qat_model on awkward nets: graph rows, shared and unused modules, in-place ops, messages, text."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import tests.models as nets
from profiler.errors import ConfigError, ModelError
from profiler.quant import (
    FakeCast,
    QConfig,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_8bit_lsq_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
)
from profiler.quant.checking.check import check_qat_model
from profiler.quant.checking.graph import argument_text, rows_of_graph, tensor_text
from profiler.quant.checking.result import NOT_RUN, ModelCheck
from profiler.quant.modules import is_leaf
from tests.quant.checking.tables import only_grid, parse_sections
from tests.quant.stages import calibrate

INT8, INT16 = default_calib_8bit_fake_quant_qconfig, default_calib_16bit_fake_quant_qconfig
OUT = default_calib_8bit_weight_32bit_out_fake_quant_qconfig


def eager(model: nn.Module, qconfig: QConfig | None = INT8) -> Any:
    model.qconfig = qconfig  # type: ignore[assignment]
    return prepare_qat(model)


def prepared(cls: type[nn.Module], front_end: str = "eager") -> Any:
    model = nets.make(cls)
    return eager(model) if front_end == "eager" else prepare_qat_fx(model, {"": INT8})


def checked(cls: type[nn.Module], front_end: str = "eager") -> ModelCheck:
    return check_qat_model(prepared(cls, front_end), nets.images(1))


def called(check: ModelCheck) -> dict[str, int]:
    return {row.name: row.count for row in check.called}


def nodes(check: ModelCheck) -> list[tuple[str, str, str, str]]:
    return [(row.opcode, row.name, row.target, row.args) for row in check.graph]


@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("cls", nets.EAGER)
def test_every_op_of_the_graph_has_a_row_and_reads_what_came_before(cls: type[nn.Module], front_end: str) -> None:
    check = checked(cls, front_end)
    seen: set[str] = set()
    for row in check.graph:
        unquoted = re.sub(r"'[^']*'", "", row.args)
        assert set(re.findall(r"[A-Za-z_][\w.]*(?:\(\d+\))?", unquoted)) - {"None", "True", "False"} <= seen, row
        seen.add(row.name)
    assert check.graph[0].opcode == "placeholder"
    assert check.graph[-1].opcode == "output"
    num_calls = sum(row.opcode.startswith("call") for row in check.graph)
    assert num_calls == len(check.outputs)
    assert sum(n for row in check.output_dtypes for _, n in row.counts) == num_calls


def test_graph_of_a_run_names_calls_producers_and_generated_modules() -> None:
    assert nodes(checked(nets.CalledTwice)) == [
        ("placeholder", "x", "x", "()"),
        ("call_module", "quant", "quant", "(x,)"),
        ("call_module", "inner.conv", "inner.conv", "(quant,)"),
        ("call_module", "inner.add_0", "inner._generated_add_0", "(inner.conv, quant)"),
        ("call_module", "inner.add_1", "inner._generated_add_1", "(inner.add_0, quant)"),
        ("call_module", "inner.conv(1)", "inner.conv", "(inner.add_1,)"),
        ("call_module", "inner.add_0(1)", "inner._generated_add_0", "(inner.conv(1), inner.add_1)"),
        ("call_module", "inner.add_1(1)", "inner._generated_add_1", "(inner.add_0(1), inner.add_1)"),
        ("call_module", "add_0", "_generated_add_0", "(inner.add_1(1), quant)"),
        ("call_module", "dequant", "dequant", "(add_0,)"),
        ("output", "output", "output", "(dequant,)"),
    ]


def test_graph_of_in_place_ops_reads_what_was_written() -> None:
    rows = {name: args for _, name, _, args in nodes(checked(nets.InPlaceAdd))}
    assert rows["add_1"] == "(add_0, quant)"
    assert rows["dequant"] == "(add_1,)"  # y.add_(x) without using its result


def test_graph_of_item_assignment_in_float_reads_what_was_written() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y[:, 0] = 0.0
            return y + 1

    check = check_qat_model(Writes(), torch.ones(2, 3))
    args = {row.name: row.args for row in check.graph}
    assert args["setitem_0"] == "(mul_0, (slice(None, None, None), 0), 0.0)"
    assert args["add_0"] == "(setitem_0, 1)"


def test_dict_output_keyword_input_and_unused_module() -> None:
    (image,) = nets.images(1)
    check = check_qat_model(prepared(nets.DictOutput), example_kw_inputs={"image": image, "gain": 2.0})
    assert check.graph[0].name == "image"
    assert check.graph[-1].args == "({'y': dequant, 'parts': (mul_0, 3), 'nothing': None},)"
    assert called(check) == {"quant": 1, "dequant": 1, "conv": 1, "uncalled": 0, "other_dequant": 1}
    assert check == check_qat_model(prepared(nets.DictOutput), {"image": image, "gain": 2.0})


def test_positional_and_keyword_inputs_go_in_together() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return x * scale

    check = check_qat_model(Two(), torch.ones(2), {"scale": torch.ones(2)})
    assert [row.args for row in check.graph if row.opcode == "call_function"] == ["(x, scale)"]
    with pytest.raises(ConfigError, match="scale"):
        check_qat_model(Two(), torch.ones(2))


def test_shared_module_is_counted_named_by_call_and_its_other_name_told() -> None:
    check = checked(nets.SharedModule)
    assert called(check) == {"quant": 1, "dequant": 1, "first": 3, "alias": 0}
    assert "alias is the same object as first" in check.text()
    assert [row.name for row in check.outputs] == ["quant", "first", "first(1)", "first(2)", "dequant"]
    assert [row.name for row in check.weights] == ["first"]
    assert check.missed_high_precision == ()  # its other calls are read by itself


def test_fusable_group_of_a_shared_module_says_shared() -> None:
    class Shared(nets.Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()

        def body(self, x: Any) -> Any:
            return self.relu(self.bn(self.conv(self.conv(x))))

    (group,) = checked(Shared).fusable
    assert (group.names, group.shared) == (("conv(1)", "bn", "relu"), (True, False, False))
    grids = parse_sections(checked(Shared).text())["Fusable modules are listed below:"]
    assert [[row[0] for row in rows] for rows in grids] == [["name", "conv(1)(shared)", "bn", "relu"]]


def test_fx_model_that_is_fused_has_nothing_left_to_fuse() -> None:
    check = checked(nets.Residual, "fx")
    assert check.fusable == ()
    assert "Fusable modules are listed below:\nNone were found.\n" in check.text()


def test_untraceable_part_of_an_fx_model_is_one_op() -> None:
    check = checked(nets.UntraceableMiddle, "fx")
    assert "part" in called(check)
    assert not any(name.startswith("part.") for name in called(check))
    assert [row.name for row in check.outputs if row.name.startswith("part.")] == []


def test_unsupported_op_says_what_it_runs_in() -> None:
    check = checked(nets.UnsupportedMiddle)
    rows = {row.name: row for row in check.outputs}
    assert rows["pool"].input_dtypes == ("qint8",)
    assert rows["pool"].out_dtype == "qint8"  # its result is quantized again


def test_all_qconfigs_none_gives_a_check_of_a_float_model() -> None:
    model = nets.make(nets.Residual)
    check = check_qat_model(eager(model, None), nets.images(1))
    assert {dtype for row in check.output_dtypes for dtype, _ in row.counts} == {"torch.float32"}
    assert {row.message for row in check.messages} == {"qconfig is None: runs in float"}
    assert check.weights == ()
    assert check.missed_high_precision == ()


def test_eagerly_prepared_graph_module_is_followed_like_any_other_model() -> None:
    """A deep copy of an fx.GraphModule has none of the attributes and hooks that prepare_qat gave it."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return is_leaf(m)

    model = nets.make(nets.CalledTwice)
    traced = fx.GraphModule(model, Tracer().trace(model))
    check = check_qat_model(eager(traced), nets.images(1))
    dtypes = {row.name: row.out_dtype for row in check.outputs}
    assert dtypes.pop("dequant") == "torch.float32"
    assert set(dtypes.values()) == {"qint8"}
    assert len(dtypes) == 8


def test_converted_model_is_refused_by_name() -> None:
    converted = convert(calibrate(prepared(nets.Residual), nets.images(2)))
    with pytest.raises(ModelError, match="Residual is converted; check_qat_model takes a prepared model"):
        check_qat_model(converted, nets.images(1))


@pytest.mark.parametrize("wide", ["quant", "first"])
def test_fallback_of_a_dtype_names_what_was_configured(wide: str) -> None:
    class FusedAdd(nets.Stubbed):
        """A conv with a fused add has no int16 input: what makes its input falls back to int8."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def body(self, x: Any) -> Any:
            other = x.flip(3)
            return self.conv(self.first(x) if wide == "first" else x) + other

    model = prepare_qat_fx(nets.make(FusedAdd), {"": INT8, "module_name": {wide: INT16}})
    (row,) = [row for row in check_qat_model(model, nets.images(1)).messages if "differs" in row.message]
    assert row.name == wide
    assert re.match(r"actual dtype qint8 differs from configured qint16: QC4: it feeds add_0", row.message)


def prepared_with(cls: type[nn.Module], front_end: str, **qconfigs: QConfig | None) -> Any:
    model = nets.make(cls)
    if front_end == "fx":
        return prepare_qat_fx(model, {"": INT8, "module_name": qconfigs})
    model.qconfig = INT8
    for name, qconfig in qconfigs.items():
        model.get_submodule(name).qconfig = qconfig
    return prepare_qat(model)


class Casts(nets.Stubbed):
    """float16 stand-ins among quantized values, and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
        self.middle, self.end = FakeCast(), FakeCast(torch.bfloat16)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.end(self.dequant(self.second(self.middle(self.first(self.quant(x)))))))


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_fake_cast_is_one_op_with_its_dtype_and_its_cell(front_end: str) -> None:
    model = prepared_with(Casts, front_end, last=None)
    check = check_qat_model(model, nets.images(1))
    rows = {row.name: row for row in check.outputs}
    assert rows["end"].out_dtype == "torch.bfloat16"
    assert rows["end"].observer.startswith("FakeCast(dtype=torch.bfloat16, min_val=-3.38")
    assert rows["last"].input_dtypes == ("torch.bfloat16",)
    assert "middle" in rows
    assert not any("to_0" in name or "clamp" in name for name in rows)
    head = parse_sections(check.text())["output dtype statistics:"][0][0]
    assert head == ["module type", "torch.float32", "qint8", "qint16", "torch.float16", "torch.bfloat16"]
    calib = calibrate(model, nets.images(3))
    assert torch.isfinite(calib(nets.images(1)[0])).all()


def test_learned_fake_quant_is_named_around_its_observer() -> None:
    model = nets.make(nets.FloatPart)
    check = check_qat_model(eager(model, default_qat_8bit_lsq_quant_qconfig), nets.images(1))
    rows = {row.name: row for row in check.outputs}
    assert rows["conv"].observer.startswith("_LearnableFakeQuantize(MovingAverage")
    assert "averaging_constant=1.0" in rows["conv"].observer


def test_weights_inside_of_an_op_have_rows_of_their_own() -> None:
    class Recurrent(nets.Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.dequant(self.lstm(self.quant(x))[0])

    check = check_qat_model(eager(Recurrent().eval()), torch.rand(2, 5, 4))
    names = [row.name for row in check.weights]
    assert len(names) >= 2
    assert all(name.startswith("lstm.") for name in names)
    assert called(check) == {"quant": 1, "dequant": 1, "lstm": 1}


# --- high precision ---


def test_missed_high_precision_is_warned_by_name_and_right_output_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert checked(nets.Residual).missed_high_precision == ("head",)
    (warning,) = [r.getMessage() for r in caplog.records if "DeQuantStub" in r.getMessage()]
    assert "the output of head is quantized" in warning
    check = check_qat_model(prepared_with(nets.Residual, "eager", head=OUT), nets.images(1))
    assert check.missed_high_precision == ()
    assert ("head", "activation is None (output layer?)") in {(r.name, r.message) for r in check.messages}


def test_missed_high_precision_looks_through_reshapes_but_not_through_relu() -> None:
    class Ends(nets.Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.second = nets.DeQuantStub()

        def forward(self, x: Tensor) -> Any:
            x = self.quant(x)
            both = self.c(x)
            return self.dequant(self.a(x).flatten(1)), self.second(F.relu(self.b(x))), self.second(both), both + both

    assert checked(Ends).missed_high_precision == ("a",)
    assert checked(nets.FrozenNorm).missed_high_precision == ()  # a batch norm is to be fused


# --- without a run ---


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_without_inputs_only_what_needs_no_run_is_told(front_end: str, caplog: pytest.LogCaptureFixture) -> None:
    model = prepared_with(nets.Residual, front_end, head=OUT)
    with caplog.at_level(logging.WARNING):
        check = check_qat_model(model)
    assert "without example_inputs only what needs no run is told" in caplog.text
    with_run = check_qat_model(model, nets.images(1))
    assert not check.has_run
    assert check.weights == with_run.weights
    assert {r.name for r in check.outputs} <= {r.name for r in with_run.outputs}
    assert all(row.input_dtypes == ("not run",) for row in check.outputs)
    own = {(r.name, r.message) for r in check.messages}
    assert own == {(r.name, r.message) for r in with_run.messages}
    text = check.text()
    assert text.count(NOT_RUN) == (5 if front_end == "eager" else 4)
    assert list(parse_sections(text)) == list(parse_sections(with_run.text()))
    assert check.graph == (with_run.graph if front_end == "fx" else ())


# --- text of arguments and graphs ---


def test_argument_text_is_the_same_in_every_run() -> None:
    value = ({"k": [torch.ones(2, 3), 1.5, None]}, slice(1, None), torch.float32, torch.device("cpu"), F.relu, object())
    text = argument_text(value, tensor_text)
    assert text == (
        "({'k': [tensor[2x3], 1.5, None]}, slice(1, None, None), torch.float32, device(type='cpu'), <relu>, <object>)"
    )


def test_graph_rows_of_an_fx_graph_hold_no_addresses() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x.view(-1)], dim=0) + 1

    rows = rows_of_graph(fx.symbolic_trace(Net()).graph)
    assert [(r.opcode, r.name, r.target, r.args, r.kwargs) for r in rows] == [
        ("placeholder", "x", "x", "()", "{}"),
        ("call_method", "view", "view", "(x, -1)", "{}"),
        ("call_function", "cat", "torch.cat", "([x, view],)", "{'dim': 0}"),
        ("call_function", "add", "torch.add", "(cat, 1)", "{}"),
        ("output", "output", "output", "(add,)", "{}"),
    ]


def test_text_is_the_same_for_the_same_model() -> None:
    assert checked(nets.NestedLoop).text() == checked(nets.NestedLoop).text()


def test_qat_qconfig_and_training_mode_are_checked_too() -> None:
    model = nets.make(nets.Residual)
    trained = eager(model, default_qat_8bit_fake_quant_qconfig).train()
    check = check_qat_model(trained, nets.images(1))
    assert only_grid(parse_sections(check.text()), "Weight qconfig:")
    assert trained.training
