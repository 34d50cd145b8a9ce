"""Statistics, histograms, channel figures and quantizer errors against numpy in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from profiler.metrics.distribution import (
    ChannelSums,
    GrowingHistogram,
    MassHistogram,
    Moments,
    QuantErrorSums,
    TensorSums,
)
from profiler.records import TensorStats


def sums_of(*tensors: Tensor, channel_axis: int | None = None) -> TensorSums:
    sums = TensorSums()
    for tensor in tensors:
        sums.update(tensor, channel_axis)
    return sums


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def split(x: Tensor, cuts: list[int]) -> list[Tensor]:
    edges = sorted({0, x.shape[0], *(c for c in cuts if c < x.shape[0])})
    return [x[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(("magnitude", "shift"), [(1.0, 0.0), (1e-3, 1e4), (1e30, 0.0), (1e-30, 0.0), (3.0, -500.0)])
def test_tensor_stats_match_numpy(magnitude: float, shift: float) -> None:
    x = randn(4, 3, 5, 6) * magnitude + shift
    exact = x.double().numpy()

    stats = sums_of(x).record()

    assert (stats.num_values, stats.num_nan, stats.num_inf) == (360, 0, 0)
    assert (stats.minimum, stats.maximum) == (exact.min(), exact.max())
    assert stats.mean == pytest.approx(exact.mean(), rel=1e-6, abs=1e-9 * magnitude)
    assert stats.var == pytest.approx(exact.var(), rel=1e-6)
    assert stats.histogram is not None
    assert sum(stats.histogram.counts) == 360


def test_float64_tensor_keeps_its_digits() -> None:
    x = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)

    stats = sums_of(x).record()

    assert stats.maximum == 1.0 + 1e-12
    assert stats.var == pytest.approx(0.25e-24, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 200),
    cuts=st.lists(st.integers(0, 200), max_size=5),
    shift=st.sampled_from([0.0, 1e4, -7.0]),
    seed=st.integers(0, 1000),
)
def test_split_into_batches_changes_nothing(size: int, cuts: list[int], shift: float, seed: int) -> None:
    x = randn(size, 3, seed=seed) + shift

    whole, merged = sums_of(x, channel_axis=1), sums_of(*split(x, cuts), channel_axis=1)

    a, b = whole.record(0.1), merged.record(0.1)
    assert (a.num_values, a.minimum, a.maximum) == (b.num_values, b.minimum, b.maximum)
    assert b.mean == pytest.approx(a.mean, rel=1e-9, abs=1e-12)
    assert b.var == pytest.approx(a.var, rel=1e-9, abs=1e-15)
    assert whole.channels is not None
    assert merged.channels is not None
    torch.testing.assert_close(merged.channels.mean, whole.channels.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(merged.channels.deviations, whole.channels.deviations, rtol=1e-9, atol=1e-12)
    assert a.histogram is not None
    assert b.histogram is not None
    assert sum(b.histogram.counts) == sum(a.histogram.counts) == size * 3


def test_empty_tensor_has_range_0() -> None:
    stats = sums_of(torch.zeros(0)).record()

    assert stats == TensorStats(0, 0, 0, 0.0, 0.0, 0.0, 0.0)
    assert stats.std == 0.0


def test_all_zero_tensor_has_one_bin() -> None:
    stats = sums_of(torch.zeros(7)).record()

    assert (stats.minimum, stats.maximum, stats.mean, stats.var) == (0.0, 0.0, 0.0, 0.0)
    assert stats.histogram is not None
    assert stats.histogram.counts == (7,)


def test_equal_values_have_no_variance() -> None:
    stats = sums_of(torch.full((3, 4), 0.1), torch.full((5, 4), 0.1)).record()

    assert stats.minimum == stats.maximum == pytest.approx(0.1)
    assert stats.var == pytest.approx(0.0, abs=1e-18)


def test_nan_and_inf_are_counted_and_left_out() -> None:
    stats = sums_of(torch.tensor([1.0, math.nan, math.inf, -math.inf, 3.0])).record()

    assert (stats.num_values, stats.num_nan, stats.num_inf) == (5, 1, 2)
    assert (stats.minimum, stats.maximum, stats.mean, stats.var) == (1.0, 3.0, 2.0, 1.0)


def test_clipped_codes_are_those_at_either_end() -> None:
    sums = sums_of(torch.zeros(4))
    sums.count_clipped(torch.tensor([-128, 127, 0, 126]), -128, 127)

    assert sums.record().clip_ratio == 0.5


def test_moments_of_large_values_with_small_spread_keep_their_digits() -> None:
    moments = Moments()
    values = 1e4 + 1e-3 * randn(10_000).double()
    for part in values.split(1000):
        moments.update(part)

    assert moments.var == pytest.approx(float(values.numpy().var()), rel=1e-6)


def test_histogram_grows_without_losing_a_value() -> None:
    histogram, parts = GrowingHistogram(), []
    for exponent in (-3, -1, 0, 4, 2):
        # multiples of 1/1024: their bins are computed exactly, in numpy and here
        x = torch.round(randn(500, seed=exponent + 9).clamp(-0.9, 0.9) * 2.0**exponent * 1024) / 1024
        histogram.update(x, float(x.abs().max()))
        parts.append(x)

    record = histogram.record()

    assert record is not None
    exact, edges = np.histogram(torch.cat(parts).double().numpy(), 128, (-16.0, 16.0))
    used = exact.nonzero()[0]
    assert record.counts == tuple(exact[used[0] : used[-1] + 1])
    assert (record.low, record.high) == (edges[used[0]], edges[used[-1] + 1])


@pytest.mark.parametrize("absmax", [1.0, 0.5, 3.4e38, 1e-38, 1e-45, 65504.0])
def test_histogram_holds_the_ends_of_the_range(absmax: float) -> None:
    histogram = GrowingHistogram()
    x = torch.tensor([-absmax, 0.0, absmax])
    histogram.update(x, float(x.abs().max()))

    record = histogram.record()

    assert record is not None
    assert sum(record.counts) == 3
    assert record.low <= -absmax
    assert absmax <= record.high


def test_channel_figures_match_brute_force_at_large_means() -> None:
    batches = [1e4 + 1e-3 * randn(4, 6, 50, seed=s).double() for s in range(3)]

    channels = ChannelSums.of(batches[0].transpose(0, 1).flatten(1))
    for batch in batches[1:]:
        channels.add(ChannelSums.of(batch.transpose(0, 1).flatten(1)))

    exact = torch.cat(batches).transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose((channels.deviations / channels.count).numpy(), exact.var(1), rtol=1e-6)
    assert channels.record(None).num_live == 6


def test_float32_channels_of_large_mean_and_small_spread_are_live_and_coarse() -> None:
    x = 1e4 + 0.01 * randn(8, 4, 100)

    stats = sums_of(x, channel_axis=1).record(scale=80.0).channels

    assert stats is not None
    assert (stats.num_live, stats.num_coarse) == (4, 4)


def test_constant_channels_are_neither_live_nor_coarse() -> None:
    x = randn(8, 4, 10)
    x[:, 1] = 0.1
    x[:, 2] = 0.0

    stats = sums_of(x, channel_axis=1).record(scale=100.0).channels

    assert stats is not None
    assert (stats.num_channels, stats.num_live, stats.num_coarse) == (4, 2, 2)


def test_channel_is_coarse_below_3_steps_exactly() -> None:
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # std 1 in both channels

    def num_coarse(scale: float) -> int:
        channels = sums_of(x, channel_axis=1).record(scale).channels
        assert channels is not None
        return channels.num_coarse

    assert num_coarse(1 / 3.001) == 0
    assert num_coarse(1 / 2.999) == 2


def test_widest_channel_is_named() -> None:
    x = randn(8, 5, 10).clamp(-1, 1)
    x[0, 3, 0] = -40.0

    stats = sums_of(x, channel_axis=1).record(1.0).channels

    assert stats is not None
    assert (stats.widest_channel, stats.absmax_max) == (3, 40.0)
    assert stats.absmax_median == pytest.approx(float(x.abs().amax((0, 2)).median()))


def test_other_number_of_channels_starts_again() -> None:
    sums = sums_of(randn(2, 3), randn(2, 5), channel_axis=1)

    assert sums.channels is not None
    assert sums.channels.absmax.shape == (5,)


def test_kl_of_equal_distributions_is_0_and_of_others_positive() -> None:
    x = randn(5000)
    masses = MassHistogram.of(x)
    masses.update(reference=x, test=x)
    assert masses.kl() == 0.0

    moved = MassHistogram.of(x)
    moved.update(reference=x, test=x + 1)
    assert moved.kl() > 0.2


def test_kl_matches_the_definition() -> None:
    x, y = randn(4000), randn(4000, seed=1) * 1.5
    masses = MassHistogram.of(x)
    masses.update(reference=x, test=y)

    edges = np.unique(np.quantile(x.numpy(), np.arange(1, 16) / 16).astype(np.float32))
    p, q = (np.bincount(np.searchsorted(edges, v.numpy(), side="left"), minlength=len(edges) + 1) + 0.5 for v in (x, y))
    p, q = p / p.sum(), q / q.sum()

    assert masses.kl() == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-3)


def test_kl_bins_hold_equal_reference_mass_and_equal_edges_are_merged() -> None:
    x = randn(16_000)
    masses = MassHistogram.of(x)
    masses.update(reference=x, test=x)
    assert masses.reference.tolist() == pytest.approx([1000] * 16, abs=1)

    assert MassHistogram.of(torch.relu(x)).edges.numel() == 8  # half of the mass is at 0


def test_kl_of_later_batches_uses_the_edges_of_the_first() -> None:
    x, y = randn(1000), randn(1000, seed=1)
    masses = MassHistogram.of(x)
    edges = masses.edges.clone()
    for part in (x, y):
        masses.update(reference=part, test=part * 1.1)

    assert torch.equal(masses.edges, edges)
    assert masses.reference.sum() == masses.test.sum() == 2000


@pytest.mark.parametrize("scale", [0.01, 0.037, 1.0])
def test_quant_error_matches_brute_force(scale: float) -> None:
    x = randn(3000) * 2
    sums = QuantErrorSums()
    for part in x.split(700):
        sums.update(part, scale, -128, 127)

    error = sums.record(scale, float(x.std()))

    exact = x.double().numpy()
    outside = (exact < -128.5 * scale) | (exact > 127.5 * scale)
    clip = ((exact - np.clip(exact, -128 * scale, 127 * scale))[outside] ** 2).sum()
    rounding = (~outside).sum() * scale**2 / 12
    assert error.clip_ratio == outside.mean()
    assert error.clip_energy == pytest.approx(clip, rel=1e-5)
    assert error.rounding_energy == pytest.approx(rounding, rel=1e-9)
    assert error.sqnr_db == pytest.approx(10 * math.log10((exact**2).sum() / (clip + rounding)), rel=1e-6)
    assert error.codes_per_std == pytest.approx(exact.std(ddof=1) / scale, rel=1e-5)
    assert error.is_clipped == (clip > rounding)


def test_quantizer_noise_model_is_near_the_true_error() -> None:
    x, scale = randn(100_000), 0.05
    sums = QuantErrorSums()
    sums.update(x, scale, -128, 127)

    true_error = float(((torch.round(x / scale).clamp(-128, 127) * scale - x) ** 2).sum())

    assert sums.record(scale, 1.0).rounding_energy == pytest.approx(true_error, rel=0.02)


def test_all_zero_reference_is_represented_exactly() -> None:
    sums = QuantErrorSums()
    sums.update(torch.zeros(10), 0.1, -128, 127)

    assert sums.record(0.1, 0.0).sqnr_db == math.inf


def test_empty_reference_has_no_clipping() -> None:
    error = QuantErrorSums().record(0.1, 0.0)

    assert (error.clip_ratio, error.sqnr_db, error.is_clipped) == (0.0, math.inf, False)


def test_non_finite_values_do_not_count_as_clipped() -> None:
    sums = QuantErrorSums()
    sums.update(torch.tensor([1.0, math.nan, math.inf]), 0.1, -128, 127)

    assert (sums.count, sums.num_clipped) == (1, 0)
    assert sums.signal_energy == 1.0


def test_histogram_of_more_values_than_float32_counts_is_exact() -> None:
    histogram = GrowingHistogram()
    histogram.update(torch.full((2**24 + 1000,), 0.5), 0.5)
    record = histogram.record()
    assert record is not None
    assert sum(record.counts) == 2**24 + 1000
