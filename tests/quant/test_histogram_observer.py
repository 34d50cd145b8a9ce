from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from profiler.errors import ConfigError, NotCalibratedError
from profiler.quant import get_default_calib_qconfig, prepare_qat, prepare_qat_fx
from profiler.quant.observers import HistogramObserver, MinMaxObserver, MSEObserver, PercentileObserver
from profiler.quant.states import named_fake_quants
from tests.models import Stubbed
from tests.quant.stages import calibrate

HISTOGRAM = get_default_calib_qconfig(calib_qkwargs={"observer": HistogramObserver})
BATCHES = [torch.randn(4, 3, 8, 8) * k for k in (0.5, 1.0, 2.0)]


class Net(Stubbed):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.post = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def body(self, x: Any) -> Any:
        return self.post(self.conv(x))


def prepared_with(qconfig: Any) -> Any:
    model = Net().eval()
    model.qconfig = qconfig
    return prepare_qat(model)


def activation_scales(model: nn.Module) -> dict[str, float]:
    return {n: float(f.scale) for n, f in named_fake_quants(model) if "weight" not in n}


@pytest.mark.parametrize(("method", "kwargs", "observer"), [
    ("mse", {}, {"observer": MSEObserver, "bins": 2048}),
    ("mse", {"stride": 5}, {"observer": MSEObserver, "bins": 2048, "stride": 5}),
    ("percentile", {"percentile": 0.99}, {"observer": PercentileObserver, "percentile": 99.0}),
])  # fmt: skip
@pytest.mark.parametrize("is_loaded", [False, True])
def test_r13_reset_scale_equals_a_fresh_calibration_with_that_method(
    method: str, kwargs: Any, observer: Any, is_loaded: bool
) -> None:
    model = calibrate(prepared_with(HISTOGRAM), BATCHES)
    if is_loaded:
        saved, model = model.state_dict(), prepared_with(HISTOGRAM)
        model.load_state_dict(saved)
    HistogramObserver.reset_scale(model, method=method, method_kwargs=kwargs)
    fresh = calibrate(prepared_with(get_default_calib_qconfig(calib_qkwargs=observer)), BATCHES)
    assert activation_scales(model) == pytest.approx(activation_scales(fresh), rel=1e-6)


def test_reset_scale_of_a_prefix_and_dtype_leaves_the_rest() -> None:
    model = calibrate(prepared_with(HISTOGRAM), BATCHES)
    before = activation_scales(model)
    HistogramObserver.reset_scale(model, dtype="qint16", prefix="conv")
    after = activation_scales(model)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"conv.activation_post_process"}
    assert model.conv.activation_post_process.dtype == "qint16"
    assert after["conv.activation_post_process"] < before["conv.activation_post_process"] / 100


@pytest.mark.parametrize(("call", "error", "text"), [
    ({"method": "best"}, ConfigError, "'best' is unknown"),
    ({"method": "percentile", "method_kwargs": {"percentile": 99.9}}, ConfigError, "expected a fraction"),
    ({"prefix": "nothing"}, ConfigError, "no module below 'nothing'"),
    ({"dtype": "int8"}, ConfigError, "'int8' is unknown"),
])  # fmt: skip
def test_reset_scale_bad_argument_is_named(call: Any, error: Any, text: str) -> None:
    model = calibrate(prepared_with(HISTOGRAM), BATCHES)
    with pytest.raises(error, match=text):
        HistogramObserver.reset_scale(model, **call)


def test_reset_scale_before_calibration_names_the_modules() -> None:
    with pytest.raises(NotCalibratedError, match=r"conv\.activation_post_process"):
        HistogramObserver.reset_scale(prepared_with(HISTOGRAM))


KEYS = ("min_max", "percentile", "mse", "kl", "mix", "clip_std", "histogram")


@pytest.mark.parametrize("saved_with", KEYS)
@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_b2_checkpoint_loads_strictly_into_a_model_with_any_observer_and_back(saved_with: str, front_end: str) -> None:
    def prepared(key: str) -> Any:
        qconfig = get_default_calib_qconfig(calib_qkwargs={"observer": key})
        return prepared_with(qconfig) if front_end == "eager" else prepare_qat_fx(Net().eval(), {"": qconfig})

    model = calibrate(prepared(saved_with), BATCHES)
    for key in KEYS:
        other = prepared(key)
        other.load_state_dict(model.state_dict())
        assert activation_scales(other) == activation_scales(model)
        back = prepared(saved_with)
        back.load_state_dict(other.state_dict())
        assert activation_scales(back) == activation_scales(model)


def test_histogram_keeps_growing_after_loading() -> None:
    first, second, whole = HistogramObserver(), HistogramObserver(), HistogramObserver()
    first(BATCHES[0])
    second.load_state_dict(first.state_dict())
    second(BATCHES[2])
    for batch in (BATCHES[0], BATCHES[2]):
        whole(batch)
    assert float(second.max_val) == float(whole.max_val)
    assert torch.equal(second.histogram, whole.histogram)


def test_histogram_bounds_are_those_of_mse() -> None:
    histogram, mse, extremes = HistogramObserver(), MSEObserver(bins=2048), MinMaxObserver()
    for observer in (histogram, mse, extremes):
        observer(BATCHES[1])
    assert float(histogram.max_val) == float(mse.max_val) <= float(extremes.max_val.abs().maximum(-extremes.min_val))


def test_checkpoint_without_a_histogram_leaves_none_behind() -> None:
    observer, other = HistogramObserver(), MinMaxObserver()
    observer(BATCHES[2])
    other(BATCHES[0])
    observer.load_state_dict(other.state_dict())
    assert (observer.histogram.numel(), float(observer.histogram_absmax)) == (0, 0.0)
    assert float(observer.max_val) == float(other.max_val)
    fresh = HistogramObserver()
    fresh.load_state_dict(other.state_dict())
    for each in (observer, fresh):
        each(BATCHES[1])
    assert float(observer.max_val) == float(fresh.max_val)
    assert torch.equal(observer.histogram, fresh.histogram)


def test_checkpoint_with_other_bins_brings_its_number_of_bins() -> None:
    saved, observer, whole = (HistogramObserver(bins=bins) for bins in (1024, 4096, 1024))
    saved(BATCHES[0])
    observer(BATCHES[2])
    observer.load_state_dict(saved.state_dict())
    assert observer.bins == 1024
    assert observer.bound_by("percentile") == saved.bound_by("percentile")
    observer(BATCHES[1])
    for batch in BATCHES[:2]:
        whole(batch)
    assert torch.equal(observer.histogram, whole.histogram)
    assert float(observer.max_val) == float(whole.max_val)


def test_checkpoint_with_an_impossible_histogram_is_refused_at_load() -> None:
    saved, observer = HistogramObserver(), HistogramObserver()
    saved(BATCHES[0])
    state = {**saved.state_dict(), "histogram": torch.ones(1000, dtype=torch.int64)}
    with pytest.raises(ConfigError, match=r"1000; expected a power of two"):
        observer.load_state_dict(state)
