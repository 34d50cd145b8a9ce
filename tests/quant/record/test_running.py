from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.quant import FakeQuantState, convert, default_qat_8bit_fake_quant_qconfig, set_fake_quantize
from profiler.quant.record.deferred import DeferredProduct
from profiler.quant.record.plan import CallPlan, RunPlan
from profiler.quant.record.results import plain_result
from profiler.quant.record.running import PLAN_ATTRIBUTE
from profiler.quant.states import named_fake_quants
from tests.quant.record.stages import calibrated, prepared, reasons, relative_error, rows, run_of
from tests.quant.stages import calibrate, run


class TwoWays(nn.Module):
    """Another way for another order of the rows: other ops, and the product of a fused add on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        z = self.second(y)
        if float(x[0, 0]) < float(x[1, 0]):
            return self.other(z.sigmoid()) - y
        return y + z


UP = torch.tensor([[3.0, -1.0, 0.5, 2.0], [1.0, 2.0, -2.5, 0.1], [-1.0, 0.3, 1.5, -0.7]])
DOWN = UP.flip(0)


def test_running_add_is_fused_and_the_product_is_put_off() -> None:
    model = calibrated(TwoWays(), [UP])
    assert isinstance(model.second, DeferredProduct)
    assert model._generated_add_0.epilogue.has_add
    converted = convert(model)
    assert torch.allclose(converted(UP), model(UP), atol=0.05)


def test_running_other_way_reads_the_product_in_float_and_names_what_was_not_recorded() -> None:
    net = TwoWays().eval()
    model = calibrated(net, [UP])
    assert reasons(model)["other"] == "no recorded run called it: it stays in float"
    assert "sub_0" not in reasons(model)
    assert relative_error(net(DOWN), model(DOWN)) < 0.05
    assert reasons(model)["sub_0"] == "no recorded run called it: runs in float"
    converted = convert(model)
    assert relative_error(net(DOWN), converted(DOWN)) < 0.05


def test_running_both_ways_recorded_quantizes_both() -> None:
    net = TwoWays().eval()
    model = calibrated(net, [UP, DOWN], num_runs=2)
    assert not {"other", "sigmoid_0", "sub_0"} & set(reasons(model))
    converted = convert(model)
    for x in (UP, DOWN):
        assert relative_error(net(x), converted(x)) < 0.05


class OneValueTwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x), x], 1)


def test_running_one_value_passes_its_stub_once_a_forward() -> None:
    model = prepared(OneValueTwoReaders(), UP)
    stubs = [name for name, _ in named_fake_quants(model) if name.startswith(("x_", "input"))]
    calls = []
    model.get_submodule(stubs[0].rpartition(".")[0]).register_forward_hook(lambda *_: calls.append(1))
    calibrate(model, [UP, UP])
    assert len(calls) == 2
    assert not any(name.startswith("_quant") for name in vars(UP))


class Loop(nn.Module):
    """As many trips as the input has steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h = torch.tanh(self.cell(torch.cat([x[:, t], h], 1)))
        return self.out(h)


def test_running_loop_with_more_trips_than_recorded_stays_right() -> None:
    net = Loop().eval()
    model = calibrated(net, rows(2, 3, 4))
    longer = rows(2, 6, 4)[0]
    assert relative_error(net(longer), model(longer)) < 0.1
    assert reasons(model)["cat_3"] == "no recorded run called it: runs in float"
    assert relative_error(net(longer), convert(model)(longer)) < 0.1


def test_running_longer_loop_while_observing_gets_quantizers_late() -> None:
    net = Loop().eval()
    model = prepared(net, rows(2, 3, 4)[0])
    assert not hasattr(model, "_generated_tanh_5")
    calibrate(model, rows(2, 6, 4))
    assert model._generated_tanh_5.activation_post_process.is_calibrated
    assert "tanh_5" not in reasons(model)
    x = rows(2, 6, 4)[0]
    assert relative_error(net(x), convert(model)(x)) < 0.1


def test_running_late_modules_come_back_from_a_checkpoint() -> None:
    net = Loop().eval()
    calib = calibrate(prepared(net, rows(2, 3, 4)[0]), rows(2, 6, 4))
    qat = prepared(net, rows(2, 3, 4)[0], qconfig=default_qat_8bit_fake_quant_qconfig)
    result = qat.load_state_dict(calib.state_dict(), strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    set_fake_quantize(qat.eval(), FakeQuantState.VALIDATION)
    assert torch.equal(qat(rows(2, 6, 4)[0]), calib(rows(2, 6, 4)[0]))


class Pair(OrderedDict[str, Any]):
    """A class of results as model libraries have it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Results(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second = kind, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, is_short: bool = False) -> Any:
        hidden = F.relu(self.first(x))
        if mask is not None:
            hidden = hidden * mask[:, None].to(hidden.dtype)
        logits = self.second(hidden)
        if is_short:
            return logits
        if self.kind == "dict":
            return {"logits": logits, "hidden": [hidden, (hidden,)], "count": 2}
        return Pair(logits=logits, hidden=(hidden, {"again": hidden}))


@pytest.mark.parametrize("kind", ["dict", "own class"])
def test_running_what_leaves_the_model_is_plain(kind: str) -> None:
    batch = {"x": UP, "mask": torch.tensor([1, 0, 1])}
    model = calibrated(Results(kind), [batch])
    for stage in (model, convert(model)):
        result = run(stage, batch)
        assert type(result) is (dict if kind == "dict" else Pair)
        hidden = result["hidden"][0]
        assert type(hidden) is Tensor
        assert hidden.dtype == torch.float32
        assert type(result["logits"]) is Tensor
    assert run(convert(model), {**batch, "is_short": True}).shape == (3, 2)


def test_plain_result_without_quantized_values_is_the_same_object() -> None:
    given = Pair(a=UP)
    assert plain_result(given) is given
    assert given["a"] is UP


def test_running_without_qconfigs_equals_float_bit_for_bit() -> None:
    for net, batch in ((Loop().eval(), rows(2, 3, 4)[0]), (TwoWays().eval(), DOWN), (Results("dict").eval(), UP)):
        model = prepared(net, batch, qconfig=None)
        expected, found = net(batch), model(batch)
        assert torch.equal(expected["logits"], found["logits"]) if isinstance(expected, dict) else True
        assert isinstance(expected, dict) or torch.equal(expected, found)


class ReadsParameters(nn.Module):
    """Its code asks for the dtype of its parameters, as model libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        return F.softmax(self.first(x) + (1 - mask.to(dtype)) * torch.finfo(dtype).min, -1)


def test_converted_model_answers_what_its_parameters_are() -> None:
    batch = (UP, torch.tensor([[1, 1, 0, 1]]))
    net = ReadsParameters().eval()
    model = calibrate_tuple(net, batch)
    converted = convert(model)
    assert relative_error(net(*batch), converted(*batch)) < 0.02
    again = convert(model)
    again.load_state_dict(converted.state_dict(), strict=True)


def calibrate_tuple(net: nn.Module, batch: tuple[Any, ...]) -> Any:
    model = prepared(net, batch).eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model(*batch)
    set_fake_quantize(model.eval(), FakeQuantState.VALIDATION)
    return model


@torch.jit.script
def scripted_swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Unseen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(scripted_swish(self.first(x)))


def test_running_unseen_code_reads_real_values_not_codes() -> None:
    net = Unseen().eval()
    model = calibrated(net, rows(5, 4))
    converted = convert(model)
    for x in rows(5, 4):
        assert relative_error(net(x), converted(x)) < 0.03
    assert converted.second.weight.dtype == torch.int8


def test_run_plan_call_beyond_the_record_is_like_the_last() -> None:
    first, last = CallPlan(stubs=((0, "a"),)), CallPlan(gives_plain=True)
    plan = RunPlan({"op": (first, last)})
    assert [plan.of_call("op", i) for i in range(4)] == [first, last, last, last]
    assert plan.of_call("unknown", 0) == CallPlan()


def test_running_exception_leaves_nothing_behind() -> None:
    model = calibrated(TwoWays(), [UP])
    with pytest.raises(RuntimeError, match="mat1"):
        model(torch.rand(2, 5))
    assert relative_error(model(UP), model(UP)) == 0.0


def test_recorded_paths_are_all_ops_that_ran() -> None:
    model = prepared(TwoWays(), UP)
    assert {"first", "second"} <= model.__dict__[PLAN_ATTRIBUTE].recorded
    assert "other" not in model.__dict__[PLAN_ATTRIBUTE].recorded
    assert run_of(UP) == ((UP,), {})
