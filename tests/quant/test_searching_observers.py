"""Observers that search for a bound, and the histogram that they search on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.errors import ConfigError
from profiler.quant.affine import qinfo
from profiler.quant.observers import KLObserver, MinMaxObserver, MixObserver, MSEObserver, PercentileObserver
from profiler.quant.observers.magnitudes import MagnitudeHistogram
from profiler.quant.observers.searching import kl_of_clipping


def squared_error(x: torch.Tensor, scale: float) -> float:
    values = x.double().numpy()
    codes = np.clip(np.rint(values / scale), -128, 127)
    return float(((codes * scale - values) ** 2).sum())


def histogram_of(*batches: torch.Tensor, bins: int = 2048) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram(bins)
    for x in batches:
        histogram.add(x, float(x.abs().max()))
    return histogram


@settings(max_examples=30, deadline=None)
@given(
    exponents=st.lists(st.integers(-30, 30), min_size=1, max_size=5),
    bins=st.sampled_from([32, 2048, 16384]),
    seed=st.integers(0, 100),
)
def test_histogram_of_batches_equals_the_histogram_of_all(exponents: list[int], bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(200, generator=generator) * 2.0**e for e in exponents]
    merged, whole = histogram_of(*batches, bins=bins), histogram_of(torch.cat(batches), bins=bins)
    assert merged.counts is not None
    assert whole.counts is not None
    assert torch.equal(merged.counts, whole.counts)
    assert (merged.start, merged.absmax) == (whole.start, whole.absmax)
    assert int(whole.counts.sum()) == int((torch.cat(batches) != 0).sum())


@pytest.mark.parametrize("bins", [32, 2048, 16384])
def test_histogram_counts_each_value_between_its_edges(bins: int) -> None:
    x = torch.randn(5000)
    histogram = histogram_of(x, bins=bins)
    assert histogram.counts is not None
    expected, _ = np.histogram(x.abs().double().numpy(), bins=np.append(histogram.edges().numpy()[1:], np.inf))
    assert histogram.counts[1:].tolist() == expected[:-1].tolist()


def test_histogram_of_more_values_than_float32_counts_is_exact() -> None:
    values = torch.full((2**24 + 1000,), 0.9)
    histogram = histogram_of(values)
    assert histogram.counts is not None
    assert int(histogram.counts.max()) == 2**24 + 1000


def test_histogram_sample_counts_each_taken_value_for_those_left_out() -> None:
    x = torch.rand(100_000) + 1
    sampled = MagnitudeHistogram()
    sampled.add(x, 2.0, sample_limit=10_000)
    whole = histogram_of(x)
    assert sampled.counts is not None
    assert whole.counts is not None
    assert int(sampled.counts.sum()) == pytest.approx(100_000, rel=1e-3)
    apart = (sampled.counts.cumsum(0) - whole.counts.cumsum(0)).abs().max()
    assert int(apart) < 0.03 * 100_000


def test_histogram_linear_bins_hold_all_counts_and_match_numpy() -> None:
    x = torch.rand(200_000)
    linear = histogram_of(x, bins=8192).linear(64)
    expected, _ = np.histogram(x.numpy(), bins=64, range=(0, float(x.max())))
    assert float(linear.sum()) == pytest.approx(200_000)
    assert np.abs(linear.numpy() - expected).max() < 0.02 * expected.max()


@pytest.mark.parametrize("bins", [0, 31, 1000, 2**21])
def test_histogram_bins_that_are_no_power_of_two_are_an_error(bins: int) -> None:
    with pytest.raises(ConfigError, match=f"bins is {bins}; expected a power of two"):
        PercentileObserver(bins=bins)


def test_squared_errors_are_those_of_the_formula() -> None:
    x = torch.randn(50_000)
    absmax = float(x.abs().max())
    bounds = absmax * torch.arange(20, 101, 5, dtype=torch.float64) / 100
    found = histogram_of(x, bins=16384).squared_errors(bounds, qinfo("qint8"))
    expected = [squared_error(x, float(b) / 127.5) for b in bounds]
    assert found.tolist() == pytest.approx(expected, rel=0.05)  # both signs clip at 127


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_mse_sees_values_that_repeat(share: float) -> None:
    x = torch.where(torch.rand(5000) < share, torch.tensor(0.7), torch.randn(5000))
    observer = MSEObserver()
    observer(x)
    absmax = float(x.abs().max())
    least = min(squared_error(x, absmax * k / 100 / 127.5) for k in range(100, 0, -1))
    assert squared_error(x, float(observer.max_val) / 127.5) <= 1.05 * least


@pytest.mark.parametrize("cls", [MSEObserver, MixObserver, PercentileObserver])
def test_calibration_bound_is_chosen_on_all_batches(cls: Any) -> None:
    """Small tensors that differ from batch to batch: a mean of bounds would clip the larger ones."""
    batches = [torch.randn(64).relu() * scale for scale in (0.3, 0.5, 1.0, 2.0, 4.0)]
    calibrated, at_once = cls(plain_mean=True), cls()
    for batch in batches:
        calibrated(batch)
    at_once(torch.cat(batches))
    assert float(calibrated.max_val) == float(at_once.max_val)
    moving = cls(averaging_constant=0.2)
    for batch in batches:
        moving(batch)
    whole = torch.cat(batches)
    scales = [float(o.calculate_qparams()[0]) for o in (calibrated, moving)]
    assert squared_error(whole, scales[0]) < 0.1 * squared_error(whole, scales[1])


def test_mse_per_channel_bounds_grow_over_batches_too() -> None:
    batches = [torch.randn(3, 500) * 10.0**k for k in range(2)]
    observer = MSEObserver(ch_axis=0, plain_mean=True)
    for batch in batches:
        observer(batch)
    for c in range(3):
        alone = MSEObserver()
        alone(torch.cat([batch[c] for batch in batches]))
        assert float(observer.max_val[c]) == float(alone.max_val)


def reference_kl(counts: np.ndarray, kept: int, levels: int) -> float:
    p, q = counts[:kept].copy(), np.zeros(kept)
    p[-1] += counts[kept:].sum()
    level = np.arange(kept) * levels // kept
    for k in range(levels):
        inside = counts[:kept][level == k]
        q[level == k] = np.where(inside > 0, inside.sum() / max((inside > 0).sum(), 1), 0)
    p, q = p / p.sum(), q / q.sum()
    q[(p > 0) & (q == 0)] = 1e-4
    q /= q.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(p > 0, p * np.log(p / q), 0).sum())


def test_kl_of_clipping_equals_a_loop_over_the_candidates() -> None:
    rng = np.random.default_rng(0)
    counts = np.histogram(np.abs(rng.normal(size=20_000)), bins=200)[0].astype(float)
    counts[5], counts[180:190] = 0, 0
    found = kl_of_clipping(torch.tensor(counts), 128).tolist()
    assert found == pytest.approx([reference_kl(counts, kept, 128) for kept in range(128, 201)], rel=1e-9)


def test_kl_clips_an_outlier_and_keeps_the_body() -> None:
    x = torch.cat([torch.randn(50_000), torch.tensor([40.0])])
    observer = KLObserver()
    observer(x)
    assert 3.0 < float(observer.max_val) < 15.0
    wide = KLObserver(dtype="qint16")
    wide(x)
    assert float(wide.max_val) == 40.0


def test_kl_update_interval_chooses_at_the_first_and_every_nth_batch() -> None:
    observer = KLObserver(update_interval=3)
    bounds = []
    for k in range(1, 7):
        observer(torch.randn(2000) * k)
        bounds.append(float(observer.max_val))
    assert bounds[0] == bounds[1]
    assert bounds[2] == bounds[3] == bounds[4]
    assert bounds[0] < bounds[2] < bounds[5]


@pytest.mark.parametrize("kwargs", [{"bins": 100}, {"update_interval": 0}])
def test_kl_bad_argument_is_an_error(kwargs: Any) -> None:
    with pytest.raises(ConfigError, match="expected bins >= 128, an interval >= 1"):
        KLObserver(**kwargs)


def test_mix_takes_the_percentile_with_the_least_error() -> None:
    x = torch.cat([torch.randn(100_000), torch.full((5,), 60.0)])
    mix, candidates = MixObserver(), []
    mix(x)
    for percentile in (99.9, 99.95, 99.99, 99.995, 99.999, 99.9995, 99.9999, 100):
        observer = PercentileObserver(percentile=percentile)
        observer(x)
        candidates.append(squared_error(x, float(observer.calculate_qparams()[0])))
    assert squared_error(x, float(mix.calculate_qparams()[0])) <= 1.02 * min(candidates)


@pytest.mark.parametrize("cls", [MinMaxObserver, MSEObserver, PercentileObserver])
@pytest.mark.parametrize("plain_mean", [True, False])
def test_calibrating_after_loading_does_not_forget_the_loaded_bounds(cls: Any, plain_mean: bool) -> None:
    first, second = cls(plain_mean=plain_mean), cls(plain_mean=plain_mean)
    first(torch.linspace(-4, 4, 1001))
    second.load_state_dict(first.state_dict())
    loaded = float(second.max_val)
    second(torch.linspace(-8, 8, 1001))
    fresh = cls()
    fresh(torch.linspace(-8, 8, 1001))
    weight = 0.01 if not plain_mean or cls is MinMaxObserver else 1 / 101
    assert float(second.max_val) == pytest.approx(loaded + weight * (float(fresh.max_val) - loaded), rel=1e-4)
