from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.errors import ConfigError, PrepareError
from profiler.quant import (
    FakeQuantState,
    convert,
    convert_fx,
    default_qat_8bit_fake_quant_qconfig,
    load_calib_state_dict,
    prepare_qat_fx,
    set_fake_quantize,
)
from profiler.quant.march import march_set_to
from profiler.quant.ops.functional import tensors_in
from profiler.quant.record.prepare import record
from profiler.quant.states import named_fake_quants
from profiler.quant.swap import EFFECTS_ATTRIBUTE
from sample_models import mobilenet_v2, multitask, pitfalls, vit, yolov3
from tests.models import FrozenNorm, InPlaceAdd, Residual, SharedModule, images, make
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.record.stages import INT8, calibrated, prepared, reasons, relative_error, rows, run_of
from tests.quant.stages import calibrate

SAMPLES = {"mobilenet_v2": mobilenet_v2, "pitfalls": pitfalls, "vit": vit, "yolov3": yolov3, "multitask": multitask}


def sample(name: str) -> tuple[Any, list[Tensor]]:
    model: Any = SAMPLES[name].load()
    batches = [b[0] if isinstance(b, tuple) else b for b in list(SAMPLES[name].calibration_batches())[:2]]
    return model.eval(), [b[:4] for b in batches]


def both(net: nn.Module, batches: list[Any]) -> tuple[Any, Any]:
    traced = prepare_qat_fx(net, {"": INT8}, example_inputs=(batches[0],), high_precision_outputs=True)
    return calibrate(traced, batches), calibrate(prepared(net, batches[0], high_precision_outputs=True), batches)


@pytest.mark.parametrize("name", SAMPLES)
def test_recorded_and_traced_sample_have_equal_scales_and_outputs(name: str) -> None:
    net, batches = sample(name)
    traced, recorded = both(net, batches)
    expected, found = dict(named_fake_quants(traced)), dict(named_fake_quants(recorded))
    assert expected.keys() == found.keys()
    assert all(torch.equal(torch.as_tensor(fq.scale), torch.as_tensor(found[n].scale)) for n, fq in expected.items())
    for stages in ((traced, recorded), (convert_fx(traced), convert(recorded))):
        outputs = [tensors_in(stage(batches[1])) for stage in stages]
        assert len(outputs[0]) == len(outputs[1]) > 0
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("cls", [Residual, InPlaceAdd, SharedModule, FrozenNorm])
def test_recorded_net_with_stubs_equals_traced_one(cls: type[nn.Module]) -> None:
    traced, recorded = both(make(cls), images())
    assert dict(named_fake_quants(traced)).keys() == dict(named_fake_quants(recorded)).keys()
    assert torch.equal(traced(images()[0]), recorded(images()[0]))
    assert torch.equal(convert_fx(traced)(images()[0]), convert(recorded)(images()[0]))


class Untraceable(nn.Module):
    """A loop over a tensor's length, item assignment, and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.cell = nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.out, self.gate = nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.relu(self.norm(self.conv(x)))
        steps = torch.zeros(len(x), x.shape[2], 4)
        h = y[:, :, 0]
        for t in range(x.shape[2]):
            h = torch.tanh(self.cell(h) + y[:, :, t])
            steps[:, t] = h
        return {"steps": self.out(steps), "last": h * self.gate(h).sigmoid()}


BATCHES = rows(3, 2, 4)


def test_recorded_untraceable_net_goes_to_integers() -> None:
    net = Untraceable().eval()
    model = calibrated(net, BATCHES)
    assert not reasons(model)
    converted = convert(model)
    expected, fake, found = net(BATCHES[0]), model(BATCHES[0]), converted(BATCHES[0])
    for key in expected:
        assert relative_error(expected[key], found[key]) < 0.06
        assert relative_error(fake[key], found[key]) < 0.02
    assert_equals_onnx(converted, BATCHES[0])


def test_recorded_prepare_leaves_the_model_alone() -> None:
    net = Untraceable()
    before, keys = copy.deepcopy(net.state_dict()), set(vars(net))
    prepared_net = prepared(net.eval(), BATCHES[0])
    calibrate(prepared_net, BATCHES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert set(vars(net)) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_recorded_model_is_copied_and_pickled() -> None:
    model = calibrated(Untraceable().eval(), BATCHES)
    expected = model(BATCHES[0])["steps"]
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(BATCHES[0])["steps"], expected)
        assert torch.equal(convert(again)(BATCHES[0])["steps"], convert(model)(BATCHES[0])["steps"])


def test_recorded_qat_loads_calib_trains_and_converts() -> None:
    net = Untraceable().eval()
    calib = calibrated(net, BATCHES)
    qat = prepared(net, BATCHES[0], qconfig=default_qat_8bit_fake_quant_qconfig)
    load_calib_state_dict(qat, calib.state_dict())
    set_fake_quantize(qat.eval(), FakeQuantState.VALIDATION)
    assert torch.equal(qat(BATCHES[0])["last"], calib(BATCHES[0])["last"])
    qat.train()
    set_fake_quantize(qat, FakeQuantState.QAT)
    optimizer = torch.optim.Adam(qat.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = sum(((qat(x)["steps"] - 0.5) ** 2).mean() + (qat(x)["last"] ** 2).mean() for x in BATCHES)
        optimizer.zero_grad()
        loss.backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in qat.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    set_fake_quantize(qat.eval(), FakeQuantState.VALIDATION)
    converted = convert(qat)
    assert relative_error(qat(BATCHES[0])["steps"], converted(BATCHES[0])["steps"]) < 0.02
    assert_equals_onnx(converted, BATCHES[0])


def test_recorded_qat_without_learning_keeps_what_calib_gives() -> None:
    net = Untraceable().eval()
    calib = calibrated(net, BATCHES)
    qat = prepared(net, BATCHES[0], qconfig=default_qat_8bit_fake_quant_qconfig)
    load_calib_state_dict(qat, calib.state_dict())
    frozen = {n: fq.scale.clone() for n, fq in named_fake_quants(qat) if "weight" in n}
    optimizer = torch.optim.SGD(qat.train().parameters(), 0.0)
    qat(BATCHES[0])["steps"].sum().backward()
    optimizer.step()
    set_fake_quantize(qat.eval(), FakeQuantState.VALIDATION)
    assert all(torch.allclose(dict(named_fake_quants(qat))[n].scale, s, rtol=0.02) for n, s in frozen.items())
    assert relative_error(calib(BATCHES[0])["steps"], qat(BATCHES[0])["steps"]) < 0.1


def test_recorded_reparametrized_weights_are_plain_and_the_users_stay() -> None:
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)),
        nn.ReLU(),
        nn.utils.spectral_norm(nn.Linear(8, 8)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)),
    ).eval()
    nn.utils.prune.l1_unstructured(net[3], "bias", 0.5)
    x = rows(64, 4)
    expected = net(x[0])
    converted = convert(calibrated(net, x))
    assert relative_error(expected, converted(x[0])) < 0.05
    assert torch.equal(net(x[0]), expected)
    assert list(net[0].parametrizations) == ["weight"]
    assert "weight_orig" in dict(net[2].named_parameters())


def test_recorded_model_that_reads_parts_of_a_module_leaves_it_in_float() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, index: Tensor) -> Tensor:
            return F.linear(self.hidden(self.table(index)), self.table.weight)

    net, index = Tied().eval(), torch.randint(0, 9, (2, 3))
    model = calibrated(net, [index])
    assert reasons(model)["table"] == "other code reads its parameters, or calls its forward: it stays in float"
    assert 0 < relative_error(net(index), convert(model)(index)) < 0.06


def test_record_gives_the_planned_graph_too() -> None:
    def no_qconfigs(model: nn.Module, graph: Any) -> list[Any]:
        return []

    setter: Callable[..., Any] = no_qconfigs
    graph, model = record(Untraceable().eval(), [run_of(BATCHES[0])], setter, high_precision_outputs=False)
    assert "conv" in {n.target for n in graph.nodes if n.op == "call_module"}
    assert not list(named_fake_quants(model))


def test_recorded_several_runs_say_each_effect_once() -> None:
    effects = [(e.op, e.reason) for e in getattr(prepared(Untraceable(), *BATCHES), EFFECTS_ATTRIBUTE)]
    assert len(effects) == len(set(effects))


def test_recorded_prepare_without_march_is_refused() -> None:
    with march_set_to(None), pytest.raises(ConfigError, match="set_march"):
        prepared(Untraceable(), BATCHES[0])


def test_recorded_prepare_of_a_prepared_model_is_refused() -> None:
    with pytest.raises(PrepareError, match="is prepared already"):
        prepared(prepared(Untraceable(), BATCHES[0]), BATCHES[0])


def test_recorded_prepare_half_precision_is_refused() -> None:
    with pytest.raises(PrepareError, match=r"float16.*call model.float\(\)"):
        prepared(nn.Sequential(nn.Linear(4, 4)).half(), BATCHES[0])


def test_recorded_prepare_inputs_that_do_not_fit_say_so() -> None:
    with pytest.raises(PrepareError, match="Untraceable: its forward raised RuntimeError on the example inputs"):
        prepared(Untraceable(), torch.rand(3, 7, 4))
