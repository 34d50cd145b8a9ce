"""R11, R12, R14, R15, R16, R31 through the public API; R13 is in tests/quant/test_histogram_observer.py."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from profiler import quant
from profiler.errors import ConfigError, PrepareError
from profiler.quant import (
    FakeQuantState,
    HistogramObserver,
    MinMaxObserver,
    MSEObserver,
    PercentileObserver,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    get_default_calib_qconfig,
    get_default_qat_qconfig,
    get_qconfig,
    load_observer_params,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
)
from profiler.quant.observers import OBSERVERS, observer_class
from profiler.quant.states import named_fake_quants
from tests.models import Stubbed
from tests.quant.stages import calibrate

ARGUMENTS: dict[str, dict[str, Any]] = {"clip": {"xmin": -6.0, "xmax": 6.0}, "fixed_scale": {"scale": 8 / 127.5}}


def gaussian_with_an_outlier() -> torch.Tensor:
    return torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([50.0])])


def error(x: torch.Tensor, scale: float) -> float:
    codes = np.clip(np.rint(x.double().numpy() / scale), -128, 127)
    return float(((codes * scale - x.double().numpy()) ** 2).sum())


@pytest.mark.parametrize(("key", "bound", "within"), [
    ("min_max", 50.0, 0.0), ("percentile", 3.89, 0.15), ("mse", 33.0, 3.0), ("kl", 12.5, 6.0), ("mix", 50.0, 45.7),
    ("clip_std", 4.0, 0.1), ("clip", 6.0, 0.0), ("fixed_scale", 8.0, 1e-5), ("histogram", 33.0, 3.0),
])  # fmt: skip
def test_r11_bound_on_a_gaussian_with_an_outlier(key: str, bound: float, within: float) -> None:
    observer = OBSERVERS[key](**ARGUMENTS.get(key, {}))
    observer(gaussian_with_an_outlier())
    assert float(observer.calculate_qparams()[0]) * 127.5 == pytest.approx(bound, abs=within + 1e-4)


def test_r11_mse_has_the_least_error_of_all() -> None:
    x, errors = gaussian_with_an_outlier(), {}
    for key, cls in OBSERVERS.items():
        observer = cls(**ARGUMENTS.get(key, {}))
        observer(x)
        errors[key] = error(x, float(observer.calculate_qparams()[0]))
    assert errors["mse"] <= min(errors.values()) * 1.01


def test_r11_defaults_are_those_of_the_table() -> None:
    for key, cls in OBSERVERS.items():
        observer: Any = cls(**ARGUMENTS.get(key, {}))
        assert (observer.averaging_constant, observer.ch_axis, observer.dtype) == (0.01, -1, "qint8")
        assert observer.qscheme is torch.per_tensor_symmetric
    assert (PercentileObserver().percentile, PercentileObserver().bins, MSEObserver().stride) == (99.99, 2048, 1)
    kl: Any = observer_class("kl")()
    assert (kl.search_bins, kl.update_interval, HistogramObserver().bins) == (512, 1, 2048)
    clip: Any = observer_class("clip_std")
    assert (clip().std_scale, clip(dtype="qint16").std_scale) == (4.0, 6.0)
    for cls in (PercentileObserver, observer_class("kl"), observer_class("mix"), clip, HistogramObserver):
        with pytest.raises(ConfigError, match="works per tensor only"):
            cls(ch_axis=0)


@pytest.mark.parametrize(("c", "values", "bound"), [(0.0, (1.0, 5.0, 9.0), 1.0), (0.5, (2.0, 4.0), 3.0)])
def test_r12_averaging_constant(c: float, values: tuple[float, ...], bound: float) -> None:
    fake_quant = get_default_qat_qconfig(activation_qkwargs={"averaging_constant": c}).activation()
    for value in values:
        fake_quant(torch.tensor([value]))
    assert float(fake_quant.scale) == pytest.approx(bound / 127.5, rel=1e-6)


def test_r12_calib_qconfig_over_ten_batches_is_their_plain_mean() -> None:
    for dtype in ("qint8", "qint16"):
        qconfig = get_default_calib_qconfig(dtype, calib_qkwargs={"observer": MinMaxObserver})
        fake_quant = qconfig.activation()
        for value in range(1, 11):
            fake_quant(torch.tensor([float(value)]))
        assert float(fake_quant.scale) == pytest.approx(5.5 / fake_quant.info.half_range, rel=1e-6)


class Net(Stubbed):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))

    def body(self, x: Any) -> Any:
        return self.head(self.relu(self.bn(self.conv(x))))


BATCHES = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]


def test_r14_observer_params_are_copied_and_other_names_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = Net().eval()
    model.qconfig = default_calib_8bit_fake_quant_qconfig
    calib = calibrate(prepare_qat(model), BATCHES)
    fused: Any = prepare_qat_fx(Net().eval(), {"": default_qat_8bit_fake_quant_qconfig})
    state = [(f.is_observer_on, f.is_fake_quant_on) for _, f in named_fake_quants(fused)]
    with caplog.at_level(logging.INFO):
        load_observer_params(calib, fused, verbose=True)
    for name in ("quant", "conv", "head.0", "head.1"):
        given = calib.get_submodule(name).activation_post_process
        assert torch.equal(fused.get_submodule(name).activation_post_process.scale, given.scale)
    assert [(f.is_observer_on, f.is_fake_quant_on) for _, f in named_fake_quants(fused)] == state
    assert "copied head.0.activation_post_process" in caplog.text
    assert "2 unexpected: bn.activation_post_process, bn.weight_fake_quant" in caplog.text
    caplog.clear()
    load_observer_params(fused, calib)
    assert "2 missing: bn.activation_post_process, bn.weight_fake_quant" in caplog.text
    with pytest.raises(PrepareError, match="Net has no fake quants"):
        load_observer_params(model, calib)


EIGHT, SIXTEEN, HIGH = "qint8", "qint16", "torch.float32"
TABLE = {
    "default_qat_8bit_fake_quant_qconfig": (EIGHT, "MovingAverageMinMaxObserver", "qat"),
    "default_calib_8bit_fake_quant_qconfig": (EIGHT, "MSEObserver", "calib"),
    "default_qat_8bit_weight_16bit_act_fake_quant_qconfig": (SIXTEEN, "MovingAverageMinMaxObserver", "qat"),
    "default_qat_16bit_fake_quant_qconfig": (SIXTEEN, "MovingAverageMinMaxObserver", "qat"),
    "default_calib_8bit_weight_16bit_act_fake_quant_qconfig": (SIXTEEN, "MSEObserver", "calib"),
    "default_calib_16bit_fake_quant_qconfig": (SIXTEEN, "MSEObserver", "calib"),
    "default_qat_8bit_weight_32bit_out_fake_quant_qconfig": (HIGH, "", "qat"),
    "default_qat_out_8bit_fake_quant_qconfig": (HIGH, "", "qat"),
    "default_calib_8bit_weight_32bit_out_fake_quant_qconfig": (HIGH, "", "calib"),
    "default_calib_out_8bit_fake_quant_qconfig": (HIGH, "", "calib"),
    "default_qat_8bit_fixed_act_fake_quant_qconfig": (EIGHT, "MovingAverageMinMaxObserver", "qat"),
    "default_qat_8bit_lsq_quant_qconfig": (EIGHT, "MovingAverageMinMaxObserver", "qat"),
}


@pytest.mark.parametrize("name", TABLE)
def test_r15_ready_made_qconfig_has_the_tables_dtype_and_observer_and_is_callable(name: str) -> None:
    dtype, observer, purpose = TABLE[name]
    qconfig = getattr(quant, name)
    assert qconfig() is qconfig
    assert (qconfig.activation_dtype, qconfig.purpose) == (dtype, purpose)
    if observer:
        assert type(qconfig.activation().activation_post_process).__name__ == observer
    weight = qconfig.weight()
    assert (weight.dtype, weight.ch_axis) == ("qint8", 0)
    assert type(weight.activation_post_process).__name__ == "MovingAveragePerChannelMinMaxObserver"


def test_r15_fixed_act_freezes_and_lsq_learns_with_scaled_gradients() -> None:
    fixed = quant.default_qat_8bit_fixed_act_fake_quant_qconfig.activation()
    assert fixed.activation_post_process.averaging_constant == 0
    for fake_quant in (quant.default_qat_8bit_lsq_quant_qconfig.activation(),
                       quant.default_qat_8bit_lsq_quant_qconfig.weight()):  # fmt: skip
        assert type(fake_quant).__name__ == "_LearnableFakeQuantize"
        assert fake_quant.use_grad_scaling
        assert fake_quant.activation_post_process.averaging_constant == 1.0


def test_r15_get_qconfig_takes_three_observers_and_dtypes() -> None:
    qconfig = get_qconfig(MSEObserver, in_dtype="qint8", weight_dtype="qint8", out_dtype="qint16", fix_scale=True)
    assert qconfig.activation_dtype == "qint16"
    assert qconfig.input().dtype == "qint8"
    assert qconfig.activation().activation_post_process.averaging_constant == 0
    assert type(get_qconfig().activation().activation_post_process) is HistogramObserver
    with pytest.raises(ConfigError, match="takes MinMaxObserver, MSEObserver or HistogramObserver"):
        get_qconfig(PercentileObserver)
    prepared: Any = prepare_qat_fx(nn.Sequential(nn.Conv2d(1, 1, 1)).eval(), {"": qconfig})
    stub = next(m for n, m in prepared.named_children() if n.endswith("activation_post_process"))
    assert stub.activation_post_process.dtype == "qint8"


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r16_child_wins_and_none_leaves_class_and_floats_unchanged(front_end: str) -> None:
    model: Any = Net().eval()
    model.qconfig = default_calib_8bit_fake_quant_qconfig
    model.conv.qconfig = default_calib_16bit_fake_quant_qconfig
    model.extra = nn.Sequential(nn.Linear(2, 2), nn.CrossEntropyLoss())
    model.extra.qconfig = None
    prepared: Any = prepare_qat(model) if front_end == "eager" else prepare_qat_fx(model)
    assert prepared.conv.activation_post_process.dtype == "qint16"
    assert prepared.get_submodule("head.0").activation_post_process.dtype == "qint8"
    if front_end == "eager":
        assert [type(m) for m in prepared.extra] == [nn.Linear, nn.CrossEntropyLoss]
        assert torch.equal(prepared.extra[0](torch.ones(1, 2)), model.extra[0](torch.ones(1, 2)))


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r31_calib_to_qat_loads_strictly_and_lr_zero_gives_calib_outputs(front_end: str) -> None:
    def prepared(qconfig: Any) -> Any:
        model: Any = Net().eval()
        model.qconfig = qconfig
        return prepare_qat(model) if front_end == "eager" else prepare_qat_fx(model)

    calib = calibrate(prepared(default_calib_8bit_fake_quant_qconfig), BATCHES)
    qat = prepared(default_qat_8bit_fake_quant_qconfig)
    assert not any(qat.load_state_dict(calib.state_dict()))
    qat.eval()
    set_fake_quantize(qat, FakeQuantState.VALIDATION)
    for batch in BATCHES:
        assert torch.equal(qat(batch), calib(batch))


def test_r15_calib_qconfigs_cover_the_largest_of_batches_that_differ() -> None:
    for qconfig in (default_calib_8bit_fake_quant_qconfig, default_calib_16bit_fake_quant_qconfig):
        fake_quant = qconfig.activation()
        for largest in (0.5, 1.0, 2.0):
            fake_quant(torch.linspace(-largest, largest, 1001))
        assert float(fake_quant.scale) * fake_quant.info.half_range >= 1.9
