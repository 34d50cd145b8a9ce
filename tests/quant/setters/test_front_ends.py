"""Setters in the front end that records and in the eager one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.models as nets
from profiler.quant import (
    ConvDtypeTemplate,
    FloatFunctional,
    MatmulDtypeTemplate,
    ModuleNameTemplate,
    QconfigSetter,
    SensitivityTemplate,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat,
    quantize,
    set_march,
    wrap,
)
from profiler.quant.record.prepare import prepare_recorded
from profiler.quant.setters.files import qconfig_dtypes
from tests.quant.setters.nets import INPUTS, FusedAdd, batches, dtypes_of, logged, make, prepare, setter
from tests.quant.stages import calibrate

TEMPLATES: list[Any] = [
    lambda: ModuleNameTemplate({"": "qint16"}),
    lambda: ConvDtypeTemplate("qint16", "qint16"),
    lambda: MatmulDtypeTemplate("qint16"),
]
NETS: list[Any] = [*INPUTS, nets.Residual, nets.CalledTwice, nets.InPlaceAdd, nets.NestedLoop, nets.WithFunctional]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("cls", NETS)
def test_recorded_run_and_traced_graph_get_the_same_dtypes_and_log(template: Any, cls: Any) -> None:
    model, x = (make(cls), batches(cls)[0]) if cls in INPUTS else (nets.make(cls), nets.images()[0])
    traced, recorded = setter(template()), setter(template())
    fx_model = prepare(model, traced)
    recorded_model = prepare_recorded(model, [((x,), {})], recorded)

    def of_ops(prepared: nn.Module) -> dict[tuple[str, str], str]:
        return {key: dtype for key, dtype in dtypes_of(prepared).items() if key[0] != "stubs"}

    assert of_ops(recorded_model) == of_ops(fx_model)
    assert recorded.changes == traced.changes
    assert qconfig_dtypes(recorded, recorded_model) == qconfig_dtypes(traced, fx_model)


class _Branching(nn.Module):
    """Cannot be traced: it asks its input for a sign."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.one(x)
        if float(x.mean()) > 0:
            y = torch.sigmoid(self.two(y))
        return {"out": self.head(y)}


def test_threshold_and_dtype_reach_a_recorded_model_and_its_integers() -> None:
    used = setter(ModuleNameTemplate({"two": {"dtype": "qint16", "threshold": 2.0}, "sigmoid_0": "qint16"}))
    x = torch.rand(2, 3, 4, 4)
    prepared = prepare_recorded(make(_Branching), [((x,), {})], used)
    assert logged(used)["two", "output"] == "qint16"
    quantized: Any = convert(calibrate(prepared, [x]))
    assert torch.equal(quantized.two.out_scale.reshape(()), torch.tensor(2.0 / 32768))
    assert torch.isfinite(quantized(x)["out"]).all()


@pytest.mark.parametrize("cls", [FusedAdd, _Branching])
def test_quantize_takes_a_setter_in_both_front_ends(cls: Any) -> None:
    used = setter(ModuleNameTemplate({"": "qint16"}))
    x = torch.rand(2, 3, 8, 8)
    stages = quantize(make(cls), [x], march="nash-m", qconfig=used)
    assert stages.frontend == ("fx" if cls is FusedAdd else "record")
    outputs = {dtype for (_, port), dtype in dtypes_of(stages.calib).items() if port == "output"}
    assert outputs >= {"qint16", "torch.float32"}
    assert any(effect.actual == "applied" for effect in stages.effects)


class _Wrapped(nets.Stubbed):
    """A method that decides by contents calls a convolution of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.refine, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    @wrap()
    def step(self, x: Any) -> Any:
        return self.refine(x) if float(x.abs().max()) > 0.5 else x

    def body(self, x: Any) -> Any:
        return self.head(torch.sigmoid(self.step(self.stem(x))))


def test_names_reach_the_ops_of_wrapped_code() -> None:
    used = setter(ModuleNameTemplate({"refine": "qint16", "stem": "qint16"}))
    calib = calibrate(prepare(nets.make(_Wrapped), used), nets.images())
    found = dtypes_of(calib)
    outputs = {op: dtype for (op, port), dtype in found.items() if port == "output"}
    assert {op for op, dtype in outputs.items() if dtype == "qint16"} == {"refine", "stem"}
    assert logged(used)["refine", "output"] == "qint16"
    assert outputs["head"] == "torch.float32"
    assert outputs["sigmoid_0"] == "qint8"


class _Eager(nets.Stubbed):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 1)
        self.sum = FloatFunctional()

    def body(self, x: Any) -> Any:
        x = self.act(self.conv(x))
        return self.head(self.sum.add(x, torch.exp(x)))


def eager(used: QconfigSetter, model: nn.Module | None = None) -> Any:
    """A model whose qconfigs a setter set as attributes, prepared in eager."""
    model = copy.deepcopy(model) if model is not None else nets.make(_Eager)
    effects = used(model, None)
    prepared: Any = prepare_qat(model)
    prepared.quant_effects = [*prepared.quant_effects, *effects]
    return prepared


def test_names_work_in_eager_with_functions_by_the_module_that_calls_them() -> None:
    used = setter(ModuleNameTemplate({"": "qint16", "conv": "qint8", "sum": {"dtype": "qint8", "threshold": 3.0}}))
    calib = calibrate(eager(used), nets.images())
    found = dtypes_of(calib)
    outputs = {op: dtype for (op, port), dtype in found.items() if port == "output"}
    assert outputs == {
        "quant": "qint16", "conv": "qint8", "act": "qint16", "head": "qint16", "sum": "qint8", "exp_0": "qint16"
    }  # fmt: skip
    assert torch.equal(calib.sum.activation_post_process.scale, torch.tensor([3.0 / 128]))
    assert convert(calib)(nets.images()[0]).shape == calib(nets.images()[0]).shape
    again = dtypes_of(calibrate(eager(setter(ModuleNameTemplate(qconfig_dtypes(used)))), nets.images()))
    assert again == found


def test_input_dtypes_are_told_as_unknown_in_eager() -> None:
    used = setter(ConvDtypeTemplate("qint16", "qint8"))
    prepared = eager(used)
    assert logged(used) == {}
    assert {r.op for r in used.refusals} == {"conv", "head"}
    assert all("nobody knows which op makes the input" in r.reason for r in used.refusals)
    assert set(dtypes_of(prepared).values()) == {"qint8"}


def test_march_and_weights_are_followed_in_eager() -> None:
    set_march("nash-e")
    used = setter(ModuleNameTemplate({"conv": {"weight": "qint16"}}), SensitivityTemplate([["act", "activation"]], 1))
    assert dtypes_of(eager(used))["conv", "weight"] == "qint16"
    set_march("bernoulli2")
    used = setter(ModuleNameTemplate({"conv": {"weight": "qint16"}}), SensitivityTemplate([["act", "activation"]], 1))
    assert set(dtypes_of(eager(used)).values()) == {"qint8"}
    assert {c.op for c in used.changes if c.template == "enable_optimize"} == {"conv", "act"}


def test_reference_may_be_ready_made_and_a_module_may_have_its_own() -> None:
    reference = default_calib_8bit_fake_quant_qconfig
    model = nets.make(_Eager)
    model.head.qconfig = None
    used = QconfigSetter(reference, [ModuleNameTemplate({"conv": "qint16"})])
    used(model, None)
    assert model.act.qconfig.activation is reference.activation
    assert model.head.qconfig is None
    assert model.conv.qconfig.activation_dtype == "qint16"
    assert model.conv.qconfig.purpose == "calib"
    assert model.conv.qconfig.activation.keywords["observer"] is reference.activation.keywords["observer"]
