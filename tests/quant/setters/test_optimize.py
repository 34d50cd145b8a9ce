"""What follows the templates: dtypes that the march lacks, frozen ones, outputs that stay unquantized."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.models as nets
from profiler.quant import ModuleNameTemplate, check_model, convert_fx, get_qconfig, prepare_qat_fx, set_march
from tests.quant.setters.nets import (
    INPUTS,
    Chain,
    FusedAdd,
    Products,
    batches,
    dtypes_of,
    effect_of,
    logged,
    make,
    prepare,
    setter,
)
from tests.quant.stages import calibrate

ALL_INT16 = {"": "qint16"}


def test_fused_add_in_int16_takes_int8_and_the_log_and_effects_say_so() -> None:
    used = setter(ModuleNameTemplate(ALL_INT16))
    prepared = prepare(make(FusedAdd), used)
    assert dtypes_of(prepared)["a", "output"] == "qint8"
    (change,) = [c for c in used.changes if c.template == "enable_optimize" and c.op == "a"]
    assert (change.before, change.after) == ("qint16", "qint8")
    assert change.reason.startswith("QC4: it feeds add_0")
    effect = effect_of(prepared, "a", "qint8")
    assert (effect.requested, effect.reason) == ("qint16", change.reason)
    assert effect_of(prepared, "x_activation_post_process", "qint16").reason == ""  # the stub did not fall back


def test_automatic_stub_before_a_fused_add_is_int8() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x) + x)

    used = setter(ModuleNameTemplate(ALL_INT16))
    prepared = prepare(Net().eval(), used)
    stubs = {dtype for (kind, _), dtype in dtypes_of(prepared).items() if kind == "stubs"}
    assert stubs == {"qint8"}


@pytest.mark.parametrize("march", ["bernoulli", "bernoulli2"])
@pytest.mark.parametrize("cls", INPUTS)
def test_int16_on_a_march_without_it_is_int8_everywhere_and_logged(march: str, cls: type[nn.Module]) -> None:
    set_march(march)
    used = setter(ModuleNameTemplate(ALL_INT16), high_precision_output=False)
    prepared = prepare(make(cls), used)
    assert set(dtypes_of(prepared).values()) == {"qint8"}
    assert logged(used) == {}
    back = [c for c in used.changes if c.template == "enable_optimize" and c.port == "output"]
    assert {c.op for c in back} == {s.op for s in used.settings}
    assert all(c.reason.startswith(f"QC8: {march} has no int16 activations") for c in back)
    assert all(effect_of(prepared, c.op, "qint8").requested == "qint16" for c in back)


@pytest.mark.parametrize("cls", INPUTS)
def test_all_int16_with_optimizing_can_be_deployed_on_bayes(cls: type[nn.Module]) -> None:
    calib = calibrate(prepare(make(cls), setter(ModuleNameTemplate(ALL_INT16))), batches(cls))
    assert check_model(convert_fx(calib), batches(cls)[0]) == 0


def test_all_int16_without_optimizing_stays_so_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    used = setter(ModuleNameTemplate(ALL_INT16), enable_optimize=False)
    prepared = prepare(make(Products), used)
    assert {d for (_, port), d in dtypes_of(prepared).items() if port == "output"} == {"qint16"}
    told = {record.getMessage() for record in caplog.records}
    assert any("quant: not deployable on bayes: output stays qint16 (enable_optimize is off)" in m for m in told)
    calib = calibrate(prepared, batches(Products))
    assert check_model(convert_fx(calib), batches(Products)[0]) > 0


@pytest.mark.parametrize("march", ["bayes", "bernoulli2"])
def test_frozen_dtype_that_the_march_lacks_stays_and_is_warned_of(march: str, caplog: pytest.LogCaptureFixture) -> None:
    set_march(march)
    used = setter(ModuleNameTemplate({"a": "qint16"}, freeze=True))
    prepared = prepare(make(FusedAdd), used)
    assert dtypes_of(prepared)["a", "output"] == "qint16"
    (warning,) = [record.getMessage() for record in caplog.records if "not deployable" in record.getMessage()]
    assert warning.startswith(f"a: not deployable on {march}: output stays qint16 (frozen by ModuleNameTemplate 1)")
    assert ("QC8" in warning) == (march == "bernoulli2")
    told = [e.reason for e in prepared.quant_effects if e.op == "a"]
    assert any("not deployable" in reason for reason in told)
    assert not [c for c in used.changes if c.op == "a" and c.template == "enable_optimize"]


def test_weights_that_the_march_lacks_are_int8() -> None:
    request = {"": {"weight": "qint16"}}
    used = setter(ModuleNameTemplate(request))
    prepared = prepare(make(Chain), used)
    assert {d for (_, port), d in dtypes_of(prepared).items() if port == "weight"} == {"qint8"}
    assert {c.reason for c in used.changes if c.after == "qint8"} == {"bayes has no qint16 weights; it has qint8"}
    set_march("nash-e")
    prepared = prepare(make(Chain), setter(ModuleNameTemplate(request)))
    assert {d for (_, port), d in dtypes_of(prepared).items() if port == "weight"} == {"qint16"}


class _Division(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.sigmoid(self.one(x)) / (torch.sigmoid(self.two(x)) + 1.0))
        return result


def test_op_that_has_int16_only_gets_it_with_its_operands() -> None:
    used = setter()
    prepared = prepare(make(_Division), used)
    raised = {op: dtype for (op, port), dtype in logged(used).items() if dtype == "qint16"}
    assert set(raised) == {"sigmoid_0", "add_0", "div_0"}
    calib = calibrate(prepared, [torch.randn(2, 3, 4, 4)])
    assert check_model(convert_fx(calib), torch.randn(2, 3, 4, 4)) == 0


class _Contradiction(nn.Module):
    """A sigmoid that a division reads, which has int16 only, and a linear layer, which has int8 only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.sigmoid(self.one(x))
        return self.head(x), x / (x + 1.0)


def test_tensor_that_no_dtype_fits_is_warned_of() -> None:
    prepared = prepare(make(_Contradiction), setter())
    (told,) = [e.reason for e in prepared.quant_effects if e.op == "sigmoid_0" and e.reason]
    assert "no dtype fits all that read it" in told


HP_NETS: list[Any] = [*INPUTS, nets.Residual, nets.CalledTwice, nets.InPlaceRelu, nets.NestedLoop, nets.WithFunctional,
                      nets.UnsupportedMiddle, nets.FloatPart, nets.IntegerInput]  # fmt: skip


@pytest.mark.parametrize("cls", HP_NETS)
def test_unquantized_outputs_are_those_of_the_plan(cls: Any) -> None:
    model = make(cls) if cls in INPUTS else nets.make(cls)
    planned = prepare_qat_fx(model, {"": get_qconfig()}, high_precision_outputs=True)
    used = setter(enable_optimize=False)
    assert dtypes_of(prepare(model, used)) == dtypes_of(planned)
    assert all(change.template == "high_precision_output" for change in used.changes)


def test_output_that_a_template_names_keeps_its_dtype() -> None:
    used = setter(ModuleNameTemplate({"last": "qint16"}))
    assert dtypes_of(prepare(make(Chain), used))["last", "output"] == "qint16"
    assert [(r.template, r.op) for r in used.refusals] == [("high_precision_output", "last")]
    by_prefix = prepare(make(Chain), setter(ModuleNameTemplate(ALL_INT16)))
    assert dtypes_of(by_prefix)["last", "output"] == "torch.float32"
    frozen = prepare(make(Chain), setter(ModuleNameTemplate(ALL_INT16, freeze=True)))
    assert dtypes_of(frozen)["last", "output"] == "qint16"


def test_readers_of_one_automatic_stub_are_all_asked() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv1d(3, 3, 1), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), self.linear(x)

    used = setter(ModuleNameTemplate(ALL_INT16))
    prepared = prepare(Net().eval(), used)
    stubs = {dtype for (kind, _), dtype in dtypes_of(prepared).items() if kind == "stubs"}
    assert stubs == {"qint8"}
    assert [c.reason for c in used.changes if c.port == "input" and c.op == "conv" and c.after == "qint8"] == [
        "bayes: linear, a linear, reads qint8 only"
    ]
