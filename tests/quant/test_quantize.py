from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.errors import ConfigError, DataError, ModelError, PrepareError
from profiler.quant import (
    QconfigSetter,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    get_march,
    get_qconfig,
    quantize,
)
from profiler.quant.batches import Batch
from profiler.quant.quantize import as_network, qconfig_source, why_not_traced
from profiler.quant.states import named_fake_quants
from tests.quant.record.stages import relative_error, rows

BATCHES = rows(16, 4)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = F.relu(self.first(x))
        if mask is not None:
            y = y * mask
        return self.second(y) * scale


class Branching(Plain):
    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = super().forward(x, mask, scale)
        return y + 1 if float(y.sum()) > -1e9 else y


class Asking(Plain):
    """Its code asks what a tensor is, which differs while it is traced."""

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return super().forward(x) + self.step(x)

    def step(self, x: Tensor) -> Any:
        return torch.tensor(2.0) if type(x) is Tensor else torch.tensor(3.0)


def front_end_of(stages: Any) -> tuple[str, str]:
    first = stages.effects[0]
    assert first.requested == "front end"
    assert first.actual == stages.frontend
    return first.actual, first.reason


def test_quantize_traceable_model_goes_through_fx() -> None:
    net = Plain().eval()
    stages = quantize(net, BATCHES)
    assert front_end_of(stages) == ("fx", "symbolic tracing sees the whole model")
    assert relative_error(net(BATCHES[0]), stages.quantized(BATCHES[0])) < 0.05
    assert torch.equal(stages.float(BATCHES[0]), net(BATCHES[0]))
    assert stages.quantized.first.weight.dtype == torch.int8
    assert stages.notes == ()


def test_quantize_model_with_control_flow_is_recorded_and_says_why() -> None:
    net = Branching().eval()
    stages = quantize(net, BATCHES)
    name, reason = front_end_of(stages)
    assert name == "record"
    assert "Branching.forward cannot be traced symbolically" in reason
    assert relative_error(net(BATCHES[0]), stages.quantized(BATCHES[0])) < 0.05


@pytest.mark.parametrize("front_end", ["fx", "record"])
def test_quantize_front_end_that_was_asked_for_is_taken(front_end: str) -> None:
    assert front_end_of(quantize(Plain(), BATCHES, frontend=front_end)) == (front_end, "as asked for")


def test_quantize_both_front_ends_give_equal_codes() -> None:
    net = Plain().eval()
    outputs = [quantize(net, BATCHES, frontend=f).quantized(BATCHES[1]) for f in ("fx", "record")]
    assert torch.equal(*outputs)


def test_quantize_fx_of_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(PrepareError, match=r"Branching.forward cannot be traced symbolically"):
        quantize(Branching(), BATCHES, frontend="fx")


def test_quantize_batches_whose_flags_differ_are_recorded() -> None:
    net, x = Plain().eval(), BATCHES[0]
    batches = [{"x": x, "scale": 1.0}, {"x": x, "scale": 2.0}, {"x": x, "mask": torch.ones(16, 8)}]
    stages = quantize(net, batches)
    name, reason = front_end_of(stages)
    assert name == "record"
    assert "batch 1 has the arguments" in reason
    for batch in batches:
        assert relative_error(net(**batch), stages.quantized(**batch)) < 0.05


def test_quantize_trace_that_computes_something_else_is_not_taken() -> None:
    net = Asking().eval()
    reason = why_not_traced(net, [Batch((BATCHES[0],))])
    assert reason.startswith("its symbolic trace computes something else on batch 0: relative error")
    stages = quantize(net, BATCHES)
    assert stages.frontend == "record"
    assert relative_error(net(BATCHES[0]), stages.quantized(BATCHES[0])) < 0.05


def test_quantize_model_with_hooks_that_a_trace_misses_is_recorded() -> None:
    net = Plain().eval()
    net.first.register_forward_hook(lambda module, given, output: output * 3)
    stages = quantize(net, BATCHES)
    assert front_end_of(stages) == ("record", "first has forward hooks, which a trace does not see")
    assert relative_error(net(BATCHES[0]), stages.quantized(BATCHES[0])) < 0.05


@pytest.mark.parametrize("batches", [
    BATCHES[0], (BATCHES[0],), {"x": BATCHES[0]}, [{"x": x} for x in BATCHES], [(x, 3) for x in BATCHES],
    BATCHES.__iter__, [[x] for x in BATCHES],
], ids="tensor tuple dict dicts pairs iterator lists".split())  # fmt: skip
@pytest.mark.parametrize("cls", [Plain, Branching])
def test_quantize_takes_every_form_of_data(cls: type[Plain], batches: Any) -> None:
    net = cls().eval()
    func = (lambda batch: batch[0]) if isinstance(batches, list) and isinstance(batches[0], tuple) else None
    stages = quantize(net, batches() if callable(batches) else batches, batch_process_func=func)
    assert relative_error(net(BATCHES[0]), stages.quantized(BATCHES[0])) < 0.06


def test_quantize_takes_no_more_batches_than_asked() -> None:
    taken = []

    def data() -> Any:
        for x in BATCHES:
            taken.append(1)
            yield x

    quantize(Plain(), data(), num_batches=2)
    assert len(taken) == 2


@pytest.mark.parametrize("cls", [Plain, Branching])
def test_quantize_leaves_model_data_and_march_alone(cls: type[Plain]) -> None:
    net, batches, march = cls().train(), [x.clone() for x in BATCHES], get_march()
    state, flags = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    stages = quantize(net, batches, march="nash-e")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(batches, BATCHES, strict=True))
    assert get_march() is march
    assert stages.notes == (f"{cls.__name__} was in training mode: a copy in eval was used",)


@pytest.mark.parametrize("cls", [Plain, Branching])
def test_quantize_takes_qconfig_dict_and_setter(cls: type[Plain]) -> None:
    int16, int8 = default_calib_16bit_fake_quant_qconfig, default_calib_8bit_fake_quant_qconfig
    by_dict = quantize(cls(), BATCHES, qconfig={"": int8, "module_name": {"first": int16}})
    assert dict(named_fake_quants(by_dict.calib))["first.activation_post_process"].dtype == "qint16"
    one = quantize(cls(), BATCHES, qconfig=int16)
    assert {fq.dtype for n, fq in named_fake_quants(one.calib) if "weight" not in n} == {"qint16"}
    setter = quantize(cls(), BATCHES, qconfig=QconfigSetter(get_qconfig()))
    assert list(named_fake_quants(setter.calib))


def test_quantize_one_op_is_a_network() -> None:
    op = nn.Linear(4, 2).eval()
    assert list(dict(as_network(op).named_children())) == ["model"]
    assert relative_error(op(BATCHES[0]), quantize(op, BATCHES).quantized(BATCHES[0])) < 0.05


def _with_nan() -> nn.Module:
    net = Plain()
    with torch.no_grad():
        net.first.weight[0, 0] = math.nan
    return net


class FailsLater(Plain):
    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        if len(x) == 5:
            raise ValueError("five")
        return super().forward(x)


class NoOps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


@pytest.mark.parametrize(("model", "data", "options", "error", "text"), [
    (Plain(), BATCHES, {"frontend": "onnx"}, ConfigError, "frontend is 'onnx'; use one of 'auto', 'fx', 'record'"),
    (Plain(), BATCHES, {"march": "mars"}, ConfigError, "mars"),
    (Plain(), BATCHES, {"qconfig": 8}, ConfigError, "qconfig is int; expected a QConfig"),
    (Plain(), BATCHES, {"num_batches": 0}, DataError, "num_batches is 0"),
    (Plain(), [], {}, DataError, "the data holds no batch"),
    (Plain(), "images", {}, DataError, "data is str"),
    (Plain(), torch.rand(2, 7), {}, DataError, "batch 0 .*forward raised RuntimeError"),
    (Plain(), torch.full((2, 4), math.nan), {}, DataError, "NaN or Inf"),
    (Plain(), {"y": BATCHES[0]}, {}, DataError, "does not fit Plain.forward"),
    ("model", BATCHES, {}, ModelError, "expected an nn.Module, got str"),
    (_with_nan(), BATCHES, {}, ModelError, r"first.weight: 1 of 32 values"),
    (Plain().half(), BATCHES, {}, ModelError, "first.weight is torch.float16"),
    (nn.Sequential(nn.LazyLinear(3)), BATCHES, {}, ModelError, "0.weight has no shape and no values yet"),
    (FailsLater(), [BATCHES[0], torch.rand(5, 4)], {}, ModelError, "batch 1 .*ValueError: five"),
    (NoOps(), BATCHES, {}, PrepareError, "no op of this model has a quantized form"),
])  # fmt: skip
def test_quantize_errors_say_what_is_wrong(
    model: Any, data: Any, options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        quantize(model, data, **options)


def test_quantize_exported_program_is_refused_with_what_to_pass() -> None:
    exported = torch.export.export(Plain().eval(), (BATCHES[0],)).module()
    with pytest.raises(ModelError, match=r"it comes out of torch.export; pass the nn.Module that was exported"):
        quantize(exported, BATCHES)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["dp", "compiled"])
def test_quantize_takes_what_wraps_a_model(wrap: Any) -> None:
    net = Plain().eval()
    assert relative_error(net(BATCHES[0]), quantize(wrap(net), BATCHES).quantized(BATCHES[0])) < 0.05


def test_quantize_scripted_part_stays_float() -> None:
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) * 2

    net = nn.Sequential(nn.Linear(4, 8), torch.jit.script(Part()), nn.Linear(8, 2)).eval()
    assert relative_error(net(BATCHES[0]), quantize(net, BATCHES).quantized(BATCHES[0])) < 0.05


def test_qconfig_source_hands_callables_through() -> None:
    setter = QconfigSetter(get_qconfig())
    assert qconfig_source(setter) is setter
