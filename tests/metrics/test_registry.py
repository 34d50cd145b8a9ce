"""The metric registry refuses duplicates and explains misses."""

from __future__ import annotations

import dataclasses

import pytest

from profiler.errors import RegistryError
from profiler.metrics import registry
from profiler.records import MetricInfo, PairStats


def test_register_same_name_twice_is_refused() -> None:
    with pytest.raises(RegistryError, match="'cosine' is registered twice"):
        registry.register(MetricInfo("cosine", "", True, None, "another"))

    assert registry.get_metric("cosine") is registry.COSINE


def test_get_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(RegistryError, match=r"'snr' is not registered; there are cosine, sqnr_db"):
        registry.get_metric("snr")


def test_every_metric_is_a_field_of_pair_stats() -> None:
    fields = {field.name for field in dataclasses.fields(PairStats)}

    assert {metric.name for metric in registry.all_metrics()} == fields - {"num_values"}


def test_ratios_are_better_when_higher_and_errors_when_lower() -> None:
    higher = {metric.name for metric in registry.all_metrics() if metric.higher_is_better}

    assert higher == {"cosine", "sqnr_db"}


def test_default_limits_are_the_catalogues() -> None:
    limits = {metric.name: metric.limit for metric in registry.all_metrics() if metric.limit is not None}

    assert limits == {"cosine": 0.995, "sqnr_db": 20.0, "kl": 0.2, "atol_scales": 5.0}
