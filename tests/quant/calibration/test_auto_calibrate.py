"""auto_calibrate: what it leaves alone, which outputs count, and what happens when something goes wrong."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError, PrepareError
from profiler.quant import (
    DeQuantStub,
    FakeQuantize,
    FakeQuantState,
    FixedScaleObserver,
    MSEObserver,
    QuantStub,
    auto_calibrate,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fixed_act_fake_quant_qconfig,
    freeze_part,
    get_default_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
)
from profiler.quant.batches import Batch
from profiler.quant.calibration.keeping import state_kept
from profiler.quant.calibration.output_error import OutputError
from profiler.quant.qconfig import QConfig
from profiler.quant.states import named_fake_quants
from tests.models import CalledTwice, DictOutput, Failing, InPlaceRelu, Residual, Stubbed, UnsupportedMiddle, make
from tests.quant.stages import FRONT_ENDS

FEW = ("mse", "min_max")


def images(count: int = 2, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(count)]


def fresh_eager(model: nn.Module, qconfig: QConfig = default_calib_8bit_fake_quant_qconfig) -> Any:
    """Prepared and never run: functions have no quantizers yet, nothing is calibrated."""
    model.qconfig = qconfig
    return prepare_qat(model).eval()


def scales(model: nn.Module) -> dict[str, list[float]]:
    return {name: fq.scale.tolist() for name, fq in named_fake_quants(model)}


def flags_of(model: nn.Module) -> list[Any]:
    modules = [(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()]
    states = [(n, fq.is_observer_on, fq.is_fake_quant_on) for n, fq in named_fake_quants(model)]
    return [modules, states]


@pytest.mark.parametrize("network", [Residual, CalledTwice, InPlaceRelu, DictOutput])
def test_auto_calibrate_calibrates_a_model_that_never_ran(network: type[nn.Module]) -> None:
    model = fresh_eager(make(network))

    data: list[Any] = [{"image": x} for x in images()] if network is DictOutput else images()
    choice = auto_calibrate(model, data, observer_list=FEW)

    assert choice.error <= choice.min_max_error
    fake_quants = dict(named_fake_quants(model))
    assert len(choice.observers) >= 2
    assert all(fake_quants[name].is_calibrated for name in choice.observers)
    assert {fq.is_observer_on for fq in fake_quants.values()} == {True}
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    if network is not DictOutput:  # which has a module that nothing reached
        FRONT_ENDS["eager"][1](model)(data[0])


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_auto_calibrate_keeps_flags_states_and_hooks(front_end: str) -> None:
    model = FRONT_ENDS[front_end][0](make(Residual), images())
    before = flags_of(model)
    auto_calibrate(model, images(), observer_list=FEW)
    assert flags_of(model) == before


def test_auto_calibrate_leaves_given_scales_alone() -> None:
    class Given(Stubbed):
        def __init__(self) -> None:
            super().__init__(scale=1 / 128)
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def body(self, x: Any) -> Any:
            return self.third(self.second(self.first(x)))

    model = Given()
    fixed = FakeQuantize.with_args(observer=FixedScaleObserver, scale=0.25, dtype="qint8")
    model.first.qconfig = QConfig(fixed, default_calib_8bit_fake_quant_qconfig.weight)  # type: ignore[assignment]
    prepared = FRONT_ENDS["eager"][0](model, [torch.randn(8, 4)])
    freeze_part(prepared, "second")
    before = scales(prepared)

    choice = auto_calibrate(prepared, [torch.randn(8, 4)])

    after = scales(prepared)
    assert list(choice.observers) == ["third.activation_post_process"]
    assert {name for name in before if before[name] != after[name]} <= set(choice.observers)


def test_auto_calibrate_refuses_a_model_whose_scales_are_all_frozen() -> None:
    model = FRONT_ENDS["eager"][0](make(Residual), images(), default_qat_8bit_fixed_act_fake_quant_qconfig)
    with pytest.raises(ConfigError, match="no activation is free"):
        auto_calibrate(model, images())


def test_auto_calibrate_takes_int16_and_observer_classes() -> None:
    qconfig = get_default_qconfig(activation_qkwargs={"dtype": "qint16"})
    model = fresh_eager(make(Residual), qconfig)
    choice = auto_calibrate(model, images(), observer_list=[MSEObserver])
    assert set(choice.observers.values()) <= {"min_max", "mse"}
    assert choice.error < 1e-2 * float(images()[0].norm())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observer_list": ["mean"]}, "'mean' is unknown"),
        ({"observer_list": ["clip"]}, "'clip' needs arguments"),
        ({"percentile_list": [101]}, "percentile is 101"),
        ({"num_batches": 0}, "num_batches is 0"),
    ],
)
def test_auto_calibrate_refuses_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        auto_calibrate(fresh_eager(make(Residual)), images(), **settings)


def test_auto_calibrate_refuses_a_float_model() -> None:
    with pytest.raises(PrepareError, match="has no fake quants"):
        auto_calibrate(make(Residual), images())


@pytest.mark.parametrize("where", ["data", "model"])
def test_auto_calibrate_brings_scales_and_flags_back_after_an_error(where: str) -> None:
    model = FRONT_ENDS["eager"][0](make(Failing), images())
    before = flags_of(model), scales(model)
    batches = images(3)
    if where == "data":
        batches[2][0, 0, 0, 0] = float("nan")
    else:
        model.inner.fails = True

    with pytest.raises(ModelError if where == "data" else ValueError, match=r"quant.*NaN or Inf|planted"):
        auto_calibrate(model, batches)

    assert (flags_of(model), scales(model)) == before


class Noisy(Stubbed):
    """No two forwards give the same, and it grows: what was measured as better is worse the next time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.dequant(self.linear(self.quant(x)))
        return y

    def noise(self, module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return result + 1e-3 * self.calls**2


def test_auto_calibrate_falls_back_to_min_max_where_outputs_differ_from_run_to_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = fresh_eager(Noisy())
    model.dequant.register_forward_hook(model.noise)
    with caplog.at_level(logging.WARNING):
        choice = auto_calibrate(model, [torch.randn(8, 4)])
    assert "differ from run to run" in caplog.text
    assert set(choice.observers.values()) == {"min_max"}
    assert choice.error == choice.min_max_error


def test_output_error_counts_the_users_dequant_stubs_and_not_the_code_behind() -> None:
    class Picks(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.linear(self.quant(x))).argmax(-1)

    model = FRONT_ENDS["eager"][0](Picks(), [torch.randn(8, 4)])
    assert auto_calibrate(model, [torch.randn(8, 4)]).min_max_error > 0


def test_output_error_counts_outputs_and_not_automatic_stubs_in_the_middle() -> None:
    class FloatMiddle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.linalg.norm(self.first(x), dim=-1, keepdim=True).expand(-1, 4))

    data = [torch.randn(8, 4)]
    model = prepare_qat_fx(FloatMiddle(), {"": default_calib_8bit_fake_quant_qconfig})
    assert sum(isinstance(m, DeQuantStub) for m in model.modules()) == 2
    model.eval()
    choice = auto_calibrate(model, data, observer_list=["min_max"])
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    test = model(data[0])
    set_fake_quantize(model, FakeQuantState._FLOAT)
    assert choice.error == pytest.approx(float((test - model(data[0])).detach().norm()), rel=1e-5)


def test_output_error_refuses_outputs_whose_shape_depends_on_the_values() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fake_quant = FakeQuantize()

        def forward(self, x: Tensor) -> Tensor:
            y = self.fake_quant(x)
            picked: Tensor = y[y != 0]
            return picked

    with pytest.raises(ModelError, match="put DeQuantStubs before the code that picks results"):
        auto_calibrate(Picks().eval(), torch.linspace(0.001, 1, 1000))


def test_auto_calibrate_stub_at_a_cut_follows_the_chosen_scale() -> None:
    class Cut(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.cut = nn.Linear(4, 4), nn.Linear(4, 4), QuantStub()

        def body(self, x: Any) -> Any:
            return self.second(self.cut(self.first(x)))

    model = fresh_eager(Cut())
    auto_calibrate(model, [torch.randn(64, 4)])
    assert torch.equal(model.cut.activation_post_process.scale, model.first.activation_post_process.scale)


def test_auto_calibrate_recurrent_layers_see_whole_sequences() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.lstm, self.dequant = QuantStub(), nn.LSTM(3, 4), DeQuantStub()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.dequant(self.lstm(self.quant(x))[0])
            return y

    batches = [torch.randn(6, 2, 3) for _ in range(2)]
    choice = auto_calibrate(FRONT_ENDS["eager"][0](Recurrent(), batches), batches, observer_list=FEW)
    assert choice.error <= choice.min_max_error
    assert len(choice.observers) > 5


def test_auto_calibrate_loader_of_pairs() -> None:
    model = fresh_eager(make(Residual))

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in images(5):
            yield batch, torch.zeros(4)

    choice = auto_calibrate(
        model, loader(), num_batches=2, batch_process_func=lambda pair: pair[0], observer_list=["min_max"]
    )
    same = fresh_eager(make(Residual))
    auto_calibrate(same, images(2), observer_list=["min_max"])
    assert scales(model) == scales(same)
    assert choice.num_forwards == 2 * 4 + 1  # reference, observing, min_max, confirmed; and one for stubs at cuts


def test_auto_calibrate_op_that_has_no_quantized_form_runs_in_float() -> None:
    for prepare, _ in FRONT_ENDS.values():
        model = prepare(make(UnsupportedMiddle), images())
        assert auto_calibrate(copy.deepcopy(model), images(), observer_list=FEW).error >= 0


def test_output_error_limit_ends_early() -> None:
    model = FRONT_ENDS["eager"][0](make(Residual), images(4))
    with state_kept(model, "test"):
        outputs = OutputError(model, [Batch((x,)) for x in images(4)])
        error = outputs.measure()
        assert outputs.num_forwards == 8
        assert outputs.measure(error / 100) == math.inf
        assert outputs.num_forwards == 9
        assert outputs.measure(error * 1.01) == error
