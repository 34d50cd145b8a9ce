"""qconfig_changelogs.txt and qconfig_dtypes: what is written is what the prepared model has, and can be set again."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tests.models as nets
from profiler.quant import ConvDtypeTemplate, ModuleNameTemplate, get_qconfig, prepare_qat_fx, set_march
from profiler.quant.setters.files import qconfig_dtypes, write_qconfig_logs
from tests.quant.setters.nets import (
    INPUTS,
    Chain,
    FusedAdd,
    Products,
    batches,
    dtypes_of,
    make,
    prepare,
    setter,
)
from tests.quant.stages import calibrate

FILES = ["qconfig_changelogs.txt", "qconfig_dtypes.pt", "qconfig_dtypes.py"]
MIXED: dict[type[nn.Module], dict[str, Any]] = {
    FusedAdd: {"add_0": "qint16", "a": {"threshold": {"output": 2.5, "input": 3.5}}},
    Chain: {"body.3": {"dtype": "qint16", "threshold": 4.0}, "body.0": {"input": "qint16"}, "last": "qint8"},
    Products: {"softmax_0": "qint16", "quant": {"dtype": "qint16", "threshold": 3.0}},
    nets.Residual: {"stem": "qint16", "cat_0": "qint16"},
    nets.WithFunctional: {"": "qint16"},
}


def inputs_of(cls: Any) -> list[torch.Tensor]:
    return batches(cls) if cls in INPUTS else nets.images()


def make_any(cls: Any) -> Any:
    return make(cls) if cls in INPUTS else nets.make(cls)


@pytest.mark.parametrize("cls", MIXED)
def test_saved_dtypes_set_the_same_dtypes_scales_and_outputs_again(cls: Any, tmp_path: Path) -> None:
    used = setter(ModuleNameTemplate(MIXED[cls]))
    first = prepare(make_any(cls), used)
    write_qconfig_logs(used, tmp_path, first)
    mapping = torch.load(tmp_path / "qconfig_dtypes.pt", weights_only=True)
    assert mapping == runpy.run_path(str(tmp_path / "qconfig_dtypes.py"))["dtypes"]
    again = setter(ModuleNameTemplate(mapping), enable_optimize=False, high_precision_output=False)
    second = prepare(make_any(cls), again)
    assert dtypes_of(second) == dtypes_of(first)
    assert [e for e in second.quant_effects if e.actual == "no effect"] == []
    assert qconfig_dtypes(again, second) == mapping
    calibs = [calibrate(model, inputs_of(cls)) for model in (first, second)]
    states = [calib.state_dict() for calib in calibs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.equal(calibs[0](inputs_of(cls)[0]), calibs[1](inputs_of(cls)[0]))


@pytest.mark.parametrize("cls", MIXED)
def test_saved_dtypes_are_those_of_the_prepared_model(cls: Any, tmp_path: Path) -> None:
    used = setter(ModuleNameTemplate(MIXED[cls]))
    prepared = prepare(make_any(cls), used)
    saved = {
        (op, port): dtype
        for op, value in qconfig_dtypes(used, prepared).items()
        for port, dtype in value.get("dtype", value).items()
        if port != "input"
    }
    assert saved == {key: dtype for key, dtype in dtypes_of(prepared).items() if key[0] != "stubs"}


def test_log_has_a_line_per_change_then_what_was_not_done(tmp_path: Path) -> None:
    frozen = ModuleNameTemplate({"body.0": "qint8"}, freeze=True)
    used = setter(frozen, ConvDtypeTemplate("qint16", "qint8"))
    paths = write_qconfig_logs(used, tmp_path / "new" / "folder", prepare(make(Chain), used))
    assert [path.name for path in paths] == FILES
    assert paths[0].read_text("utf-8").splitlines() == [
        "ConvDtypeTemplate 2 | body.0 | input | qint8 -> qint16 | input of body.0",
        "ConvDtypeTemplate 2 | body.4 | output | qint8 -> qint16 | input of body.5: body.4 makes that input",
        "ConvDtypeTemplate 2 | body.5 | output | qint8 -> qint16 | input of last: body.5 makes that input",
        "high_precision_output | last | output | qint8 -> torch.float32 | it only feeds outputs of the model",
        "",
        "not done:",
        "ConvDtypeTemplate 2 | body.0 | output | qint16 not set | frozen by ModuleNameTemplate 1",
    ]


def test_log_of_a_setter_that_changed_nothing_says_so(tmp_path: Path) -> None:
    used = setter(high_precision_output=False)
    paths = write_qconfig_logs(used, tmp_path, prepare(make(Chain), used))
    assert paths[0].read_text("utf-8") == "no template changed anything\n"


def test_what_prepare_itself_changed_is_in_the_log_and_the_dtypes(tmp_path: Path) -> None:
    set_march("bayes")
    used = setter(ModuleNameTemplate({"body.3": "qint16"}), high_precision_output=False)
    model = make(Chain)

    def then_narrow(root: nn.Module, graph: Any) -> Any:
        effects = used(root, graph)
        root.get_submodule("body.3").__dict__["qconfig"] = get_qconfig()
        return effects

    paths = write_qconfig_logs(used, tmp_path, prepare_qat_fx(model, qconfig_setter=then_narrow))
    assert "prepare | body.3 | output | qint16 -> qint8 | " in paths[0].read_text("utf-8")
    assert torch.load(paths[1], weights_only=True)["body.3"]["output"] == "qint8"
