from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from profiler.errors import ConfigError
from profiler.quant import get_default_qat_out_qconfig, get_default_qat_qconfig, prepare_qat_fx
from profiler.quant.naming import op_name
from tests.models import NestedLoop, Residual, make

INT8, INT16, OUT = get_default_qat_qconfig(), get_default_qat_qconfig(dtype="qint16"), get_default_qat_out_qconfig()


def requested(prepared: Any) -> dict[str, str]:
    return {e.op: e.requested for e in prepared.quant_effects}


def dtypes(model: Any, qconfig_dict: Any) -> dict[str, str]:
    prepared = prepare_qat_fx(model, qconfig_dict)
    found = {}
    for name, module in prepared.named_modules():
        if hasattr(module, "to_integer"):
            activation = module.activation_post_process
            found[op_name(name)] = "torch.float32" if activation is None else activation.dtype
    return found


def test_qconfig_dict_global_reaches_every_op() -> None:
    assert set(dtypes(make(Residual), {"": INT16}).values()) == {"qint16"}


def test_qconfig_dict_type_beats_global_and_name_beats_type_and_own_beats_all() -> None:
    model = make(NestedLoop)
    model.steps[2].qconfig = OUT
    found = dtypes(model, {
        "": INT8, "module_type": [(nn.Conv2d, INT16)], "module_name": {"steps.1": INT8, "steps.2": INT8},
    })  # fmt: skip
    assert found["quant"] == "qint8"
    assert found["nest.1.0"] == "qint8"  # it feeds a conv fused with an add
    by_step = [found[k] for k in ("steps.0", "steps.1", "steps.2") if k in found]
    assert by_step != ["qint16"] * 3


@pytest.mark.parametrize("entries", [{"head": INT16}, [("head", INT16)]])
def test_qconfig_dict_names_as_dict_or_pairs(entries: Any) -> None:
    found = dtypes(make(Residual), {"": INT8, "module_name": entries})
    assert (found["head"], found["stem.convolution"]) == ("qint16", "qint8")


@pytest.mark.parametrize("empty", [..., None, {}, [], {"head": ...}])
def test_qconfig_dict_dots_and_empty_mean_no_entry(empty: Any) -> None:
    assert set(dtypes(make(Residual), {"": INT8, "module_name": empty}).values()) == {"qint8"}


def test_qconfig_dict_global_dots_mean_no_entry() -> None:
    model = make(Residual)
    model.qconfig = INT16
    assert set(dtypes(model, {"": ...}).values()) == {"qint16"}


def test_qconfig_dict_none_skips_the_part() -> None:
    prepared = prepare_qat_fx(make(Residual), {"": INT8, "module_name": {"block": None}})
    assert type(prepared.block.convolution).__module__.startswith(("torch.", "profiler.quant.ops"))
    assert not hasattr(prepared.block.convolution, "weight_fake_quant")
    reasons = {e.op: e.reason for e in prepared.quant_effects}
    assert reasons["block.convolution"] == "qconfig is None"


def test_qconfig_dict_function_takes_its_parents_and_its_own_name() -> None:
    class Inner(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner = nn.Conv2d(3, 3, 1), Inner()

        def forward(self, x: Any) -> Any:
            return self.inner(self.conv(x))

    assert dtypes(Outer(), {"": INT8, "module_name": {"inner": INT16}})["inner.add_0"] == "qint16"
    assert dtypes(Outer(), {"": INT8, "module_name": {"inner.add_0": INT16}})["inner.add_0"] == "qint16"


def test_qconfig_dict_misspelt_name_is_named_with_the_nearest() -> None:
    prepared = prepare_qat_fx(make(Residual), {"": INT8, "module_name": {"stem.convolutoin": INT16, "head": INT16}})
    (effect,) = [e for e in prepared.quant_effects if e.actual == "no effect"]
    assert effect.op == "stem.convolutoin"
    assert "matched nothing; the nearest names are stem.convolution" in effect.reason


@pytest.mark.parametrize(("given", "text"), [
    ({"module_names": {}}, r"unknown keys \['module_names'\]"),
    ({"": "int8"}, "qconfig is str"),
    ({"module_name": {"head": 8}}, "module_name head: qconfig is int"),
])  # fmt: skip
def test_qconfig_dict_bad_value_is_named(given: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        prepare_qat_fx(make(Residual), given)


class Fused(nn.Module):
    """A conv fused with an add behind a conv and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)
        self.third = nn.Conv2d(3, 3, 1)

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        return self.third(self.second(self.relu(y).flatten(2).view(x.shape)) + y)


def test_r28_producer_of_a_fused_adds_input_falls_back_with_one_line() -> None:
    prepared: Any = prepare_qat_fx(Fused().eval(), {"": INT16})
    (effect,) = [e for e in prepared.quant_effects if e.op == "first"]
    assert (effect.requested, effect.actual) == ("qint16", "qint8")
    assert effect.reason.startswith("QC4: it feeds add_0")
    assert prepared.first.activation_post_process.dtype == "qint8"
    others = {e.op: e.actual for e in prepared.quant_effects if e.op in ("add_0", "third")}
    assert others == {"add_0": "qint16", "third": "qint16"}


def test_r102_misspelt_name_is_qc5_and_a_matching_entry_lists_its_ops() -> None:
    given = {"": INT8, "module_name": {"stem.convolutoin": INT16, "stem": INT16}, "module_type": [(nn.GRU, INT16)]}
    effects = {e.op: e for e in prepare_qat_fx(make(Residual), given).quant_effects}
    assert effects["stem.convolutoin"].actual == "no effect"
    assert "nearest names are stem.convolution" in effects["stem.convolutoin"].reason
    assert effects["GRU"].actual == "no effect"
    listed = effects["module_name stem"]
    assert (listed.requested, listed.actual) == ("qint16", "applied")
    assert "stem.convolution" in listed.reason


def test_qconfig_dict_entry_below_others_is_said_to_change_nothing() -> None:
    model = make(Residual)
    model.head.qconfig = INT8
    effects = prepare_qat_fx(model, {"": INT8, "module_name": {"head": INT16}}).quant_effects
    (effect,) = [e for e in effects if e.actual == "no effect"]
    assert effect.op == "head"
    assert "changed nothing: a qconfig attribute" in effect.reason


def test_hybrid_dict_unknown_name_and_key_are_said() -> None:
    prepared = prepare_qat_fx(make(Residual), {"": INT8}, hybrid_dict={"module_name": ["stem.convolutoin"]})
    assert any(e.op == "stem.convolutoin" and e.actual == "no effect" for e in prepared.quant_effects)
    with pytest.raises(ConfigError, match="hybrid_dict has unknown keys"):
        prepare_qat_fx(make(Residual), {"": INT8}, hybrid_dict={"names": []})


def test_r25_hybrid_op_stays_float_between_named_stubs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.post, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Any) -> Any:
            return self.last(self.post(self.first(x)))

    prepared = prepare_qat_fx(Net().eval(), {"": INT8}, hybrid=True, hybrid_dict={"module_name": ["post"]})
    assert type(prepared.post) is nn.Conv2d
    names = dict(prepared.named_children())
    assert {"post_input_dequant", "post_activation_post_process"} <= names.keys()
    (effect,) = [e for e in prepared.quant_effects if e.op == "post"]
    assert (effect.actual, effect.reason) == ("torch.float32", "hybrid_dict: runs in float between automatic stubs")
