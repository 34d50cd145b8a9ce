from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.errors import ConfigError, ModelError, NotCalibratedError
from profiler.quant import (
    FixedScaleObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    MSEObserver,
    PercentileObserver,
)
from profiler.quant.observers import ObserverBase, observer_class

ALL: list[Any] = [MinMaxObserver, MovingAverageMinMaxObserver, PercentileObserver, MSEObserver]


def scale_after(observer: ObserverBase, *batches: torch.Tensor) -> float:
    for batch in batches:
        observer(batch)
    return float(observer.calculate_qparams()[0])


@pytest.mark.parametrize("cls", ALL)
def test_observer_nothing_seen_is_uncalibrated(cls: Any) -> None:
    observer = cls()
    assert not observer.is_calibrated
    with pytest.raises(NotCalibratedError, match="observed no data"):
        observer.calculate_qparams()


@pytest.mark.parametrize(("dtype", "half"), [("qint8", 127.5), ("qint16", 32767.5)])
def test_min_max_scale_is_absmax_over_half_the_range(dtype: str, half: float) -> None:
    observer = MinMaxObserver(dtype=dtype)
    assert scale_after(observer, torch.tensor([-3.0, 1.0])) == float(np.float32(3) / np.float32(half))
    assert (float(observer.min_val), float(observer.max_val)) == (-3.0, 1.0)


def test_min_max_all_zero_gives_the_floor() -> None:
    assert scale_after(MinMaxObserver(), torch.zeros(4)) == 2.0**-23


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_min_max_per_channel_equals_each_channel_alone(axis: int) -> None:
    x = torch.randn(3, 4, 5)
    observer = MinMaxObserver(ch_axis=axis, qscheme=torch.per_channel_symmetric)
    observer(x)
    expected = [float(x.select(axis, c).abs().max()) / 127.5 for c in range(x.shape[axis])]
    assert observer.calculate_qparams()[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_per_channel_larger_channel_gets_a_larger_scale() -> None:
    observer = MovingAveragePerChannelMinMaxObserver()
    observer(torch.tensor([[1.0, -1.0], [100.0, 3.0]]))
    scales = observer.calculate_qparams()[0]
    assert float(scales[1] / scales[0]) == pytest.approx(100)


@pytest.mark.parametrize("c", [0.0, 0.01, 0.5, 1.0])
def test_averaging_constant_moves_bounds_by_its_share(c: float) -> None:
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([-5.0, 10.0]), torch.tensor([-2.0, 4.0])]
    observer = MinMaxObserver(averaging_constant=c)
    low, high = -1.0, 2.0
    for batch in batches:
        observer(batch)
    for batch in batches[1:]:
        low, high = low + c * (float(batch[0]) - low), high + c * (float(batch[1]) - high)
    assert float(observer.min_val) == pytest.approx(low, rel=1e-6)
    assert float(observer.max_val) == pytest.approx(high, rel=1e-6)


def test_averaging_constant_zero_freezes_the_first_batch() -> None:
    assert scale_after(MinMaxObserver(averaging_constant=0), torch.ones(2), torch.ones(2) * 9) == pytest.approx(
        1 / 127.5
    )


def test_averaging_constant_half_after_two_batches_is_their_mean() -> None:
    observer = MinMaxObserver(averaging_constant=0.5)
    assert scale_after(observer, torch.ones(2), 3 * torch.ones(2)) == pytest.approx(2 / 127.5)


def test_plain_mean_over_ten_batches_is_their_mean() -> None:
    batches = [torch.tensor([float(k)]) for k in range(1, 11)]
    assert scale_after(MinMaxObserver(plain_mean=True), *batches) == pytest.approx(5.5 / 127.5, rel=1e-6)


def test_plain_mean_with_averaging_constant_zero_is_frozen() -> None:
    observer = MinMaxObserver(plain_mean=True, averaging_constant=0)
    assert scale_after(observer, torch.ones(1), torch.ones(1) * 5) == pytest.approx(1 / 127.5)


def test_plain_mean_goes_over_to_the_constant_after_its_inverse() -> None:
    observer = MinMaxObserver(plain_mean=True, averaging_constant=0.5)
    batches = [torch.tensor([v]) for v in (2.0, 4.0, 7.0)]
    assert scale_after(observer, *batches) == pytest.approx((3 + 0.5 * (7 - 3)) / 127.5)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9, 100.0])
def test_percentile_bound_is_within_bins_of_the_exact_one(percentile: float) -> None:
    x = torch.randn(100_000)
    observer = PercentileObserver(percentile=percentile)
    observer(x)
    exact = float(np.percentile(x[x != 0].abs().numpy(), percentile))
    assert float(observer.max_val) == pytest.approx(exact, abs=3 * float(x.abs().max()) / 2048)


def test_percentile_100_is_min_max() -> None:
    x = torch.randn(1000)
    assert scale_after(PercentileObserver(percentile=100), x) == pytest.approx(
        scale_after(MinMaxObserver(), x), rel=1e-6
    )


def true_error(x: torch.Tensor, bound: float, half: float, quant_max: int) -> float:
    scale = bound / half
    codes = np.clip(np.rint(x.double().numpy() / scale), -quant_max - 1, quant_max)
    return float(((codes * scale - x.double().numpy()) ** 2).sum())


DISTRIBUTIONS = {
    "gaussian": lambda: torch.randn(20_000),
    "outlier": lambda: torch.cat([torch.randn(20_000), torch.tensor([60.0])]),
    "laplace": lambda: torch.distributions.Laplace(0.0, 1.0).sample((20_000,)),
    "relu": lambda: torch.randn(20_000).relu(),
    "uniform": lambda: torch.rand(20_000) * 2 - 1,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("stride", [1, 7])
def test_mse_bound_has_the_least_error_of_all_candidates(name: str, stride: int) -> None:
    x = DISTRIBUTIONS[name]()
    observer = MSEObserver(stride=stride)
    observer(x)
    absmax = float(x.abs().max())
    errors = {k: true_error(x, absmax * k / 100, 127.5, 127) for k in range(100, 0, -stride)}
    chosen = round(float(observer.max_val) / absmax * 100)
    assert chosen in errors
    assert errors[chosen] <= 1.02 * min(errors.values())  # the observer sums over 2048 bins


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_int16_bound_is_near_the_least_error(name: str) -> None:
    x = DISTRIBUTIONS[name]()
    observer = MSEObserver(dtype="qint16", stride=5)
    observer(x)
    absmax = float(x.abs().max())
    errors = [true_error(x, absmax * k / 100, 32767.5, 32767) for k in range(100, 0, -5)]
    assert true_error(x, float(observer.max_val), 32767.5, 32767) <= 1.1 * min(errors)


def test_mse_error_is_least_of_all_observers_on_an_outlier() -> None:
    x = DISTRIBUTIONS["outlier"]()
    bounds = []
    for cls in ALL:
        observer = cls()
        observer(x)
        bounds.append(max(abs(float(observer.min_val)), float(observer.max_val)))
    errors = [true_error(x, b, 127.5, 127) for b in bounds]
    assert errors[ALL.index(MSEObserver)] <= min(errors) * 1.001


def test_mse_per_channel_equals_each_channel_alone() -> None:
    x = torch.randn(3, 2000) * torch.tensor([[1.0], [10.0], [0.1]])
    observer = MSEObserver(ch_axis=0)
    observer(x)
    for c in range(3):
        alone = MSEObserver()
        alone(x[c])
        assert float(observer.max_val[c]) == pytest.approx(float(alone.max_val), rel=1e-6)


def test_fixed_scale_ignores_data_and_is_calibrated() -> None:
    observer = FixedScaleObserver(scale=1.0)
    assert observer.is_calibrated
    assert scale_after(observer, torch.randn(5) * 100) == 1.0
    observer.set_absmax(torch.tensor(5.0))
    assert scale_after(observer) == 1.0


@pytest.mark.parametrize("cls", [*ALL, MovingAveragePerChannelMinMaxObserver])
def test_observer_empty_tensor_changes_nothing(cls: Any) -> None:
    observer = cls()
    observer(torch.zeros(0, 3))
    assert not observer.is_calibrated
    observer(torch.ones(2, 3))
    before = observer.min_val.clone()
    observer(torch.zeros(2, 0))
    assert torch.equal(observer.min_val, before)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_observer_nan_or_inf_is_an_error_and_changes_nothing(cls: Any, bad: float) -> None:
    observer = cls()
    observer(torch.ones(3))
    with pytest.raises(ModelError, match="NaN or Inf"):
        observer(torch.tensor([1.0, bad]))
    assert float(observer.max_val) == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    exponent=st.integers(-20, 20),
    index=st.integers(0, len(ALL) - 1),
)
def test_observer_any_shape_and_range_gives_a_positive_scale_within_absmax(
    shape: list[int], exponent: int, index: int
) -> None:
    x = torch.randn(shape) * 2.0**exponent
    scale = scale_after(ALL[index](), x)
    assert 0 < scale <= max(float(x.abs().max()) / 127.5, 2.0**-23) * 1.0001


@pytest.mark.parametrize(("cls", "kwargs", "text"), [
    (MinMaxObserver, {"averaging_constant": 1.5}, "averaging_constant is 1.5"),
    (MinMaxObserver, {"dtype": "int8"}, "'int8' is unknown"),
    (MinMaxObserver, {"is_sync_quantize": True}, "is_sync_quantize"),
    (PercentileObserver, {"ch_axis": 0}, "PercentileObserver works per tensor only"),
    (PercentileObserver, {"percentile": 0}, "percentile is 0"),
    (MSEObserver, {"stride": 21}, "stride is 21"),
    (FixedScaleObserver, {"scale": 0.0}, "expected a positive scale"),
    (FixedScaleObserver, {"scale": 1.0, "zero_point": 2}, "zero_point 0"),
])  # fmt: skip
def test_observer_bad_argument_is_named(cls: Any, kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        cls(**kwargs)


def test_observer_class_unknown_key_lists_the_keys() -> None:
    assert observer_class("mse") is MSEObserver
    assert observer_class(MSEObserver) is MSEObserver
    with pytest.raises(
        ConfigError, match="'kl2' is unknown; use one of min_max, percentile, mse, kl, mix, clip_std, clip, fixed_scale"
    ):
        observer_class("kl2")


@pytest.mark.parametrize("qscheme", [torch.per_tensor_affine, torch.per_channel_affine])
def test_observer_of_an_affine_scheme_is_an_error(qscheme: torch.qscheme) -> None:
    with pytest.raises(ConfigError, match="per_channel_symmetric"):
        MinMaxObserver(qscheme=qscheme)
