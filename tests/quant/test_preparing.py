from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.errors import ConfigError, PrepareError
from profiler.quant import (
    DeQuantStub,
    PrepareMethod,
    QconfigSetter,
    QuantStub,
    convert,
    get_qconfig,
    prepare,
)
from profiler.quant.march import march_set_to
from profiler.quant.states import named_fake_quants
from profiler.quant.swap import EFFECTS_ATTRIBUTE
from tests.quant.record.stages import INT8, relative_error, rows
from tests.quant.stages import calibrate

CHECK_FILES = {"model_check_result.txt", "fx_graph.txt"}
SETTER_FILES = {"qconfig_changelogs.txt", "qconfig_dtypes.pt", "qconfig_dtypes.py"}
BATCHES = rows(16, 4)
X = BATCHES[0]
JIT = (PrepareMethod.JIT, PrepareMethod.JIT_STRIP)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        y = F.relu(self.first(self.quant(x)))
        result: Tensor = self.dequant(self.second(y + 0.5))
        return result * gain


class Branching(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return super().forward(x, gain) if float(x.sum()) < 1e9 else x


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("method", PrepareMethod)
def test_prepare_every_method_gives_a_model_that_goes_to_integers(method: PrepareMethod, tmp_path: Path) -> None:
    net = Net().eval()
    model = prepare(net, X, INT8, method, out_dir=tmp_path)
    assert names_in(tmp_path) == CHECK_FILES
    assert hasattr(model, EFFECTS_ATTRIBUTE)
    assert all(fq.is_observer_on and fq.is_fake_quant_on for _, fq in named_fake_quants(model))  # the QAT state
    calibrate(model, BATCHES)
    assert relative_error(net(X), convert(model)(X)) < 0.05


def test_prepare_methods_name_the_same_fake_quants(tmp_path: Path) -> None:
    named = [
        {n for n, _ in named_fake_quants(calibrate(prepare(Net().eval(), X, INT8, m, out_dir=None), BATCHES))}
        for m in (PrepareMethod.SYMBOLIC, *JIT)
    ]
    assert named[0] == named[1] == named[2]


@pytest.mark.parametrize("method", PrepareMethod)
def test_prepare_with_setter_writes_its_logs(method: PrepareMethod, tmp_path: Path) -> None:
    prepare(Net().eval(), X, QconfigSetter(get_qconfig()), method, out_dir=tmp_path)
    assert names_in(tmp_path) == CHECK_FILES | SETTER_FILES
    assert "first" in torch.load(tmp_path / "qconfig_dtypes.pt")


@pytest.mark.parametrize("setter", [INT8, QconfigSetter(get_qconfig())], ids=["qconfig", "setter"])
def test_prepare_without_folder_writes_nothing(setter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(Net().eval(), X, setter, out_dir=None)
    assert names_in(tmp_path) == set()
    prepare(Net().eval(), X, setter)
    assert names_in(tmp_path) >= CHECK_FILES


@pytest.mark.parametrize("method", JIT)
@pytest.mark.parametrize(("args", "kwargs"), [
    (X, None), ((X,), None), ([X, 2.0], None), ({"x": X}, None), (None, {"x": X, "gain": 2.0}), (X, {"gain": 2.0}),
], ids="tensor tuple list dict keywords both".split())  # fmt: skip
def test_prepare_takes_every_form_of_inputs(method: PrepareMethod, args: Any, kwargs: Any, tmp_path: Path) -> None:
    net = Branching().eval()
    model = prepare(net, args, INT8, method, kwargs, out_dir=tmp_path)
    assert relative_error(net(X), convert(calibrate(model, BATCHES))(X)) < 0.05


def test_prepare_symbolic_takes_keyword_inputs() -> None:
    model = prepare(Net().eval(), None, INT8, PrepareMethod.SYMBOLIC, {"x": X}, out_dir=None)
    assert list(named_fake_quants(model))


def test_prepare_takes_qconfig_attributes_of_the_model() -> None:
    for method in PrepareMethod:
        net = Net().eval()
        net.qconfig, net.second.qconfig = INT8, None
        model = calibrate(prepare(net, X, None, method, out_dir=None), [])
        names = {name for name, _ in named_fake_quants(model)}
        assert any(name.startswith("first") for name in names), method
        assert not any(name.startswith("second") for name in names), method


def test_prepare_leaves_the_model_alone() -> None:
    for method in PrepareMethod:
        net = Net().eval()
        keys, state = (
            {n: set(vars(m)) for n, m in net.named_modules()},
            {k: v.clone() for k, v in net.state_dict().items()},
        )
        prepare(net, X, INT8, method, out_dir=None)
        assert {n: set(vars(m)) for n, m in net.named_modules()} == keys
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("method", JIT)
def test_prepare_jit_without_inputs_is_refused(method: PrepareMethod) -> None:
    with pytest.raises(ConfigError, match="JIT methods run the model once; pass example_inputs or example_kw_inputs"):
        prepare(Net(), None, INT8, method, out_dir=None)


@pytest.mark.parametrize("method", PrepareMethod)
def test_prepare_without_qconfig_is_refused(method: PrepareMethod) -> None:
    with pytest.raises(ConfigError, match="prepare: no qconfig; pass qconfig_setter="):
        prepare(Net(), X, method=method, out_dir=None)


@pytest.mark.parametrize("method", PrepareMethod)
def test_prepare_without_march_is_refused(method: PrepareMethod) -> None:
    with march_set_to(None), pytest.raises(ConfigError, match="set_march"):  # type: ignore[arg-type]
        prepare(Net(), X, INT8, method, out_dir=None)


def test_prepare_unknown_method_lists_them() -> None:
    with pytest.raises(
        ConfigError, match=r"method is 'jit'; use one of PrepareMethod.EAGER, .*PrepareMethod.JIT_STRIP"
    ):
        prepare(Net(), X, INT8, "jit", out_dir=None)  # type: ignore[arg-type]


def test_prepare_symbolic_of_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(PrepareError, match=r"Branching.forward cannot be traced symbolically"):
        prepare(Branching(), X, INT8, PrepareMethod.SYMBOLIC, out_dir=None)


def test_prepare_unusable_setter_is_refused() -> None:
    with pytest.raises(ConfigError, match="qconfig is int; expected a QConfig"):
        prepare(Net(), X, 8, out_dir=None)


def test_prepare_jit_inputs_that_do_not_fit_say_so() -> None:
    with pytest.raises(PrepareError, match="Net: its forward raised RuntimeError on the example inputs"):
        prepare(Net(), torch.rand(2, 9), INT8, out_dir=None)
