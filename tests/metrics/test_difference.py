"""Sums of pairs against numpy in float64 on everything at once, and the answers for awkward tensors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from profiler.metrics.difference import PairSums, cosine, sqnr_db
from profiler.records import PairStats

SUMS = ("num_values", "reference_squared", "test_squared", "product", "error_squared", "error_abs", "error_max")


def sums_of(*pairs: tuple[Tensor, Tensor]) -> PairSums:
    sums = PairSums()
    for reference, test in pairs:
        sums.update(reference=reference, test=test)
    return sums


def stats_of(reference: list[float], test: list[float], scale: float | None = None) -> PairStats:
    return sums_of((torch.tensor(reference), torch.tensor(test))).stats(scale)


def random_pair(size: int, magnitude: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(size, generator=generator) * magnitude
    return reference, reference + torch.randn(size, generator=generator) * 0.01 * magnitude


@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [
        *((d, m) for d in (torch.float32, torch.float64, torch.bfloat16) for m in (1.0, 1e-3, 1e4, 1e-22, 1e25)),
        *((torch.float16, m) for m in (1.0, 1e-3, 1e4)),
    ],
)
def test_stats_match_numpy_in_float64(dtype: torch.dtype, magnitude: float) -> None:
    reference, test = (x.to(dtype) for x in random_pair(5000, magnitude))
    r, t = (x.double().numpy() for x in (reference, test))

    stats = sums_of((reference, test)).stats(scale=0.5)

    error = t - r
    exact = {
        "cosine": float(r @ t / math.sqrt((r @ r) * (t @ t))),
        "sqnr_db": 10 * math.log10(float(r @ r) / float(error @ error)),
        "mse": float(np.mean(error**2)),
        "l1": float(np.mean(abs(error))),
        "atol": float(abs(error).max()),
        "atol_scales": float(abs(error).max()) / 0.5,
        "rms_lsb": math.sqrt(float(np.mean(error**2))) / 0.5,
    }
    assert stats.num_values == 5000
    # t - r of neighbouring float32 values is exact or nearly so; a float16 pair is exact in float32
    assert {name: getattr(stats, name) for name in exact} == pytest.approx(exact, rel=1e-5)
    assert stats.cosine == pytest.approx(exact["cosine"], rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 400),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    magnitude=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_split_into_batches_changes_nothing(size: int, cuts: list[int], magnitude: float, seed: int) -> None:
    reference, test = random_pair(size, magnitude, seed)
    edges = sorted({0, size, *(c for c in cuts if c < size)})
    parts = [(reference[a:b], test[a:b]) for a, b in itertools.pairwise(edges)]

    whole, merged = sums_of((reference, test)), sums_of(*parts)

    for name in SUMS:
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-9), name


def test_identical_tensors_have_no_error() -> None:
    stats = stats_of([1.0, -2.0, 3.0], [1.0, -2.0, 3.0], 0.5)

    assert (stats.cosine, stats.sqnr_db, stats.mse, stats.l1, stats.atol) == (1.0, math.inf, 0.0, 0.0, 0.0)
    assert (stats.kl, stats.atol_scales, stats.rms_lsb) == (0.0, 0.0, 0.0)


def test_test_of_twice_the_reference_has_0_db_and_full_cosine() -> None:
    stats = stats_of([1.0, -2.0, 3.0], [2.0, -4.0, 6.0])

    assert stats.sqnr_db == pytest.approx(0.0, abs=1e-12)
    assert stats.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("reference", "test", "expected_cosine", "expected_sqnr"),
    [
        ([0.0, 0.0], [0.0, 0.0], 1.0, math.inf),
        ([0.0, 0.0], [1.0, 2.0], 0.0, -math.inf),
        ([1.0, 2.0], [0.0, 0.0], 0, 0.0),
    ],
)
def test_all_zero_sides_have_defined_answers(
    reference: list[float], test: list[float], expected_cosine: float, expected_sqnr: float
) -> None:
    stats = stats_of(reference, test)

    assert (stats.cosine, stats.sqnr_db) == (expected_cosine, expected_sqnr)


def test_empty_tensor_is_identical_to_itself() -> None:
    stats = stats_of([], [], 1.0)

    assert stats == PairStats(0, 1.0, math.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_equal_values_everywhere_are_compared() -> None:
    stats = stats_of([2.0] * 5, [2.5] * 5)

    assert stats.mse == 0.25
    assert stats.cosine == pytest.approx(1.0)
    assert stats.kl == pytest.approx(math.log(5.5 / 0.5) * (5.5 - 0.5) / 6)  # all mass moved between two bins


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["reference", "test"])
def test_non_finite_values_on_either_side_do_not_count(bad: float, side: str) -> None:
    reference, test = [1.0, 2.0, 3.0], [1.0, 2.5, 3.0]
    (reference if side == "reference" else test)[0] = bad

    assert stats_of(reference, test) == stats_of([2.0, 3.0], [2.5, 3.0])


def test_nothing_but_nan_counts_no_value() -> None:
    assert stats_of([math.nan], [math.nan]).num_values == 0


def test_opposite_tensors_have_cosine_minus_1() -> None:
    assert cosine(sums_of((torch.ones(4), -torch.ones(4)))) == -1.0


def test_orthogonal_tensors_have_cosine_0() -> None:
    assert stats_of([1.0, 0.0], [0.0, 1.0]).cosine == 0.0


def test_sqnr_of_a_tenth_of_the_signal_is_20_db() -> None:
    assert sqnr_db(1.0, 0.01) == pytest.approx(20.0)


def test_stats_without_a_single_scale_leave_steps_unknown() -> None:
    stats = stats_of([1.0], [2.0])

    assert (stats.atol_scales, stats.rms_lsb) == (None, None)


def test_rms_of_ideal_rounding_is_0_289_steps() -> None:
    reference = torch.linspace(-10, 10, 100_001)

    stats = sums_of((reference, torch.round(reference / 0.5) * 0.5)).stats(0.5)

    assert stats.rms_lsb == pytest.approx(0.2887, abs=1e-3)


def test_user_tensors_are_not_changed_and_may_need_gradients() -> None:
    reference = torch.ones(3, requires_grad=True)

    sums_of((reference, torch.zeros(3)))

    assert torch.equal(reference.detach(), torch.ones(3))
