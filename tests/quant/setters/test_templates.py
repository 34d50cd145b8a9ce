"""Name, convolution and matmul templates: which ops they change, and what the log says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.models as nets
from profiler.errors import ConfigError
from profiler.quant import (
    ConvDtypeTemplate,
    MatmulDtypeTemplate,
    ModuleNameTemplate,
    SensitivityTemplate,
    convert_fx,
    prepare_qat_fx,
    set_march,
)
from profiler.quant.setters.ports import parse_requests
from tests.quant.setters.nets import (
    INPUTS,
    Chain,
    FusedAdd,
    Products,
    SharedInput,
    batches,
    differences,
    dtypes_of,
    effect_of,
    logged,
    make,
    prepare,
    setter,
)
from tests.quant.stages import calibrate

TEMPLATES: dict[str, Any] = {
    "all int16": lambda: ModuleNameTemplate({"": "qint16"}),
    "weights": lambda: ModuleNameTemplate({"": {"weight": "qint16"}}),
    "inputs": lambda: ModuleNameTemplate({"": {"input": "qint16"}}),
    "convolutions": lambda: ConvDtypeTemplate("qint16", "qint16"),
    "products": lambda: MatmulDtypeTemplate("qint16"),
}


@pytest.mark.parametrize(("template", "march", "cls"), [*itertools.product(TEMPLATES, ("bayes", "nash-m"), INPUTS)])
def test_template_on_any_net_changes_exactly_what_the_log_says(template: str, march: str, cls: type[nn.Module]) -> None:
    set_march(march)
    before = prepare(make(cls), setter(high_precision_output=False, enable_optimize=False))
    used = setter(TEMPLATES[template]())
    after = prepare(make(cls), used)
    found = differences(before, after)
    stubs = {key for key in found if key[0] == "stubs"}
    assert {key: dtype for key, dtype in found.items() if key not in stubs} == logged(used)
    assert bool(stubs) == any(s.dtypes.get("input") == "qint16" for s in used.settings)


@pytest.mark.parametrize(
    "cls", [nets.Residual, nets.CalledTwice, nets.WithFunctional, nets.InPlaceAdd, nets.NestedLoop]
)
def test_all_int16_on_awkward_net_runs_as_integers(cls: type[nn.Module]) -> None:
    set_march("nash-m")
    used = setter(ModuleNameTemplate({"": "qint16"}))
    prepared = prepare(nets.make(cls), used)
    before = prepare(nets.make(cls), setter(high_precision_output=False))
    assert differences(before, prepared) == logged(used)
    calib = calibrate(prepared, nets.images())
    expected = calib(nets.images()[0]).detach()
    difference = (convert_fx(calib)(nets.images()[0]) - expected).abs().max()
    assert float(difference) <= 0.02 * float(expected.abs().max())


def test_name_of_one_layer_changes_that_layer_alone() -> None:
    used = setter(ModuleNameTemplate({"body.3": "qint16"}), high_precision_output=False)
    after = prepare(make(Chain), used)
    before = prepare(make(Chain), setter(high_precision_output=False))
    assert differences(before, after) == {("body.3", "output"): "qint16"} == logged(used)
    (change,) = used.changes
    assert str(change) == "ModuleNameTemplate 1 | body.3 | output | qint8 -> qint16 | named by 'body.3'"


def test_prefix_changes_the_layers_below_it_and_no_longer_name() -> None:
    model = nn.Sequential()
    model.add_module("conv", nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid()))
    model.add_module("conv2", nn.Conv2d(3, 3, 1))
    used = setter(ModuleNameTemplate({"conv": "qint16"}), high_precision_output=False)
    prepare(model.eval(), used)
    assert logged(used) == {("conv.0", "output"): "qint16", ("conv.1", "output"): "qint16"}


def test_more_specific_name_wins_port_by_port_whatever_the_order() -> None:
    mapping = {"body.3": {"weight": "qint16"}, "": "qint16", "body": {"dtype": "qint8", "threshold": 2.0}}
    used = setter(ModuleNameTemplate(mapping), high_precision_output=False, enable_optimize=False)
    after = dtypes_of(prepare(make(Chain), used))
    assert after["body.3", "weight"] == "qint16"
    assert after["body.3", "output"] == after["body.0", "output"] == "qint8"
    assert after["last", "output"] == "qint16"
    assert {s.op: s.thresholds for s in used.settings}["body.3"] == {"output": 2.0}


@pytest.mark.parametrize("name", ["b", "bn", "add_0", "_generated_add_0", "relu_0"])
def test_each_name_of_a_fused_group_means_the_group(name: str) -> None:
    used = setter(ModuleNameTemplate({name: "qint16"}), enable_optimize=False)
    after = dtypes_of(prepare(make(FusedAdd), used))
    assert after["add_0", "output"] == "qint16"
    assert logged(used) == {("add_0", "output"): "qint16", ("head", "output"): "torch.float32"}


def test_input_of_a_layer_is_set_at_the_op_that_makes_it_through_a_pool() -> None:
    used = setter(ModuleNameTemplate({"body.3": {"input": "qint16"}}))
    after = prepare(make(Chain), used)
    assert dtypes_of(after)["body.0", "output"] == "qint16"
    assert used.changes[0].reason == "named by 'body.3': body.0 makes that input"


def test_input_of_the_first_layers_is_set_at_their_common_automatic_stub() -> None:
    used = setter(ModuleNameTemplate({"two": {"input": "qint16"}}), high_precision_output=False)
    after = prepare(make(SharedInput), used)
    (stub,) = [dtype for (kind, _), dtype in dtypes_of(after).items() if kind == "stubs"]
    assert stub == "qint16"
    assert {(c.op, c.port) for c in used.changes} == {("one", "input"), ("two", "input")}
    assert "two reads" not in str(used.changes[0])
    assert used.changes[0].reason == "named by 'two': one reads the same value"


def test_whole_model_in_int16_has_its_automatic_stubs_in_int16() -> None:
    after = prepare(make(SharedInput), setter(ModuleNameTemplate({"": "qint16"})))
    assert set(dtypes_of(after).values()) == {"qint16", "qint8"}
    weights = {key for key, dtype in dtypes_of(after).items() if dtype == "qint8"}
    assert {port for _, port in weights} == {"weight"}


def test_misspelt_name_is_told_with_the_nearest_ones() -> None:
    used = setter(ModuleNameTemplate({"bodi.3": "qint16"}))
    prepared = prepare(make(Chain), used)
    told = effect_of(prepared, "bodi.3", "no effect").reason
    assert "matched nothing" in told
    assert "body.3" in told


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("unused", "qint16", "the forward calls no op of it"),
        ("body.2", "qint16", "it keeps the dtype and scale of its input"),
        ("body.4", {"weight": "qint16"}, "it has no weight"),
    ],
)
def test_name_that_cannot_have_what_is_asked_for_says_why(name: str, value: Any, reason: str) -> None:
    cls = Chain if name.startswith("body") else SharedInput
    prepared = prepare(make(cls), setter(ModuleNameTemplate({name: value})))
    assert reason in effect_of(prepared, name, "no effect").reason


class _BeforeTheStub(nets.Stubbed):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.conv = nn.Tanh(), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.conv(self.quant(self.scale(x))))


def test_op_outside_the_stubs_has_no_ports() -> None:
    used = setter(ModuleNameTemplate({"scale": "qint16"}), ModuleNameTemplate({"": "qint16"}))
    prepared = prepare(make(_BeforeTheStub), used)
    assert "its inputs are float" in effect_of(prepared, "scale", "no effect").reason
    assert {s.op for s in used.settings} == {"quant", "conv"} == {op for op, _ in dtypes_of(prepared)}


def test_layer_with_qconfig_none_stays_float() -> None:
    model = make(Chain)
    model.body[3].qconfig = None
    prepared = prepare(model, setter(ModuleNameTemplate({"": "qint16"}), ModuleNameTemplate({"body.3": "qint8"})))
    assert ("body.3", "output") not in dtypes_of(prepared)
    assert type(prepared.get_submodule("body.3")) is nn.Conv2d
    assert "qconfig is None" in effect_of(prepared, "body.3", "no effect").reason


def test_conv_template_leaves_linear_layers_and_their_inputs() -> None:
    used = setter(ConvDtypeTemplate("qint16", None), enable_optimize=False, high_precision_output=False)
    prepare(make(FusedAdd), used)
    assert logged(used) == {("a", "output"): "qint16"}
    assert {(c.op, c.port) for c in used.changes} == {("a", "output"), ("a", "input")}


def test_matmul_template_sets_each_operand_at_its_maker() -> None:
    used = setter(MatmulDtypeTemplate(["qint16", None]), high_precision_output=False)
    prepare(make(Products), used)
    assert logged(used) == {("left", "output"): "qint16", ("softmax_0", "output"): "qint16"}


def test_template_for_an_op_that_the_net_lacks_says_so() -> None:
    prepared = prepare(make(Chain), setter(MatmulDtypeTemplate("qint16")))
    assert "no matmul" in effect_of(prepared, "MatmulDtypeTemplate 1", "no effect").reason


def test_later_template_overrides_an_earlier_one_but_not_a_frozen_one() -> None:
    first = ModuleNameTemplate({"body.0": "qint16"})
    frozen = ModuleNameTemplate({"body.3": "qint16"}, freeze=True)
    used = setter(first, frozen, ModuleNameTemplate({"": "qint8"}), high_precision_output=False)
    after = dtypes_of(prepare(make(Chain), used))
    assert after["body.0", "output"] == "qint8"
    assert after["body.3", "output"] == "qint16"
    assert [(r.op, r.reason) for r in used.refusals] == [("body.3", "frozen by ModuleNameTemplate 2")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("int16", "expected qint4, qint8, qint16 or torch.float32"),
        ({"weight": "torch.float32"}, "weight: dtype is 'torch.float32'"),
        ({"outputs": "qint8"}, "unknown keys"),
        ({"dtype": "qint8", "threshold": 0}, "expected a positive number"),
        ({"threshold": True}, "expected a positive number"),
        ({"threshold": float("nan")}, "expected a positive number"),
        ({"dtype": {"out": "qint8"}}, "unknown keys"),
        ({"dtype": torch.float32, "threshold": 1.0}, "a threshold needs a quantized dtype"),
        ({"dtype": {"input": ["qint8", "qint8"]}, "threshold": {"input": [1.0, 2.0, 3.0]}}, "give one, or as many"),
        ({}, "nothing is asked for"),
    ],
)
def test_wrong_value_is_refused_with_its_name(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModuleNameTemplate({"conv": value})
    with pytest.raises(ConfigError, match="here"):
        parse_requests(value, "here")


@pytest.mark.parametrize(
    "template",
    [
        lambda: ModuleNameTemplate(["conv"]),  # type: ignore[arg-type]
        lambda: ModuleNameTemplate({1: "qint8"}),  # type: ignore[dict-item]
        lambda: ConvDtypeTemplate("qint32"),
        lambda: MatmulDtypeTemplate(["qint8"]),
        lambda: MatmulDtypeTemplate(None),  # type: ignore[arg-type]
        lambda: setter(ModuleNameTemplate),
        lambda: setter("qint8"),
        lambda: SensitivityTemplate([], 1, "out"),  # type: ignore[arg-type]
    ],
)
def test_wrong_argument_is_refused(template: Any) -> None:
    with pytest.raises(ConfigError):
        template()


class _Threshold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.sigmoid(self.two(self.one(x))))
        return result


@pytest.mark.parametrize(("dtype", "steps"), [("qint8", 128), ("qint16", 32768)])
def test_threshold_gives_that_scale_in_prepared_calibrated_and_converted_model(dtype: str, steps: int) -> None:
    ports = {"output": 3.0, "input": 5.0, "weight": 1.0}
    value = {"dtype": {"output": dtype, "input": dtype, "weight": "qint8"}, "threshold": ports}
    prepared = prepare(make(_Threshold), setter(ModuleNameTemplate({"one": value})))
    expected = [torch.tensor([3.0 / steps]), torch.tensor([5.0 / steps]), torch.tensor([1.0 / 128])]

    def scales(stub: Any) -> list[Tensor]:
        one = prepared.one
        return [one.activation_post_process.scale, stub.activation_post_process.scale, one.weight_fake_quant.scale]

    stub = prepared.x_activation_post_process
    assert all(torch.equal(found, want) for found, want in zip(scales(stub), expected, strict=True))
    calib = calibrate(prepared, [torch.randn(2, 3, 4, 4) * 9])
    assert all(torch.equal(found, want) for found, want in zip(scales(stub), expected, strict=True))
    quantized: Any = convert_fx(calib)
    assert torch.equal(quantized.one.out_scale.reshape(1), expected[0])
    assert quantized.one.out_dtype == dtype
    assert torch.equal(quantized.x_activation_post_process.out_scale.reshape(1), expected[1])


def test_threshold_keeps_its_range_where_int16_falls_back() -> None:
    set_march("bernoulli2")
    value = {"dtype": "qint16", "threshold": 3.0}
    prepared = prepare(make(_Threshold), setter(ModuleNameTemplate({"one": value})))
    assert prepared.one.activation_post_process.dtype == "qint8"
    assert torch.equal(prepared.one.activation_post_process.scale, torch.tensor([3.0 / 128]))


def test_threshold_of_a_stub_with_a_scale_of_its_own_is_refused() -> None:
    used = setter(ModuleNameTemplate({"quant": {"threshold": 3.0}}))
    model = nets.make(nets.Residual)
    model.quant.scale = 1 / 128
    prepared = prepare(model, used)
    assert torch.equal(prepared.quant.activation_post_process.scale, torch.tensor([1 / 128]))
    assert "its scale, 0.0078125" in effect_of(prepared, "quant", "no effect").reason


def test_same_setter_prepares_two_models_and_tells_of_the_last_one() -> None:
    used = setter(ModuleNameTemplate({"": "qint16"}))
    first, second = prepare(make(Chain), used), prepare(make(SharedInput), used)
    again = prepare_qat_fx(make(Chain), qconfig_setter=used)
    assert dtypes_of(first) == dtypes_of(again)
    assert dtypes_of(second) != dtypes_of(first)
    assert {s.op for s in used.settings} >= {"body.0", "last"}
    assert torch.isfinite(calibrate(second, batches(SharedInput))(batches(SharedInput)[0])).all()
