from __future__ import annotations

import math
import random

import pytest

from profiler.report.numbers import decimals, significant


@pytest.mark.parametrize(
    ("value", "places", "good", "text"),
    [
        (0.99996, 4, "up", "0.9999"),
        (0.99999999, 7, "up", "0.9999999"),
        (1.0, 7, "up", "1.0000000"),
        (19.999, 1, "up", "19.9"),
        (0.30001, 2, "down", "0.31"),
        (0.1, 7, "", "0.1000000"),
        (-0.0, 2, "", "0.00"),
        (2e-9, 7, "", "2.0e-09"),
        (-5.5, 1, "up", "-5.5"),
        (math.nan, 3, "", "nan"),
        (-math.inf, 3, "", "-inf"),
    ],
)
def test_decimals_never_claims_more(value: float, places: int, good: str, text: str) -> None:
    assert decimals(value, places, good) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "good", "text"),
    [
        (0.99996, "up", "0.9999"),
        (5.00001, "down", "5.001"),
        (0.0, "", "0"),
        (12345678.0, "", "1.235e+07"),
        (3.2e-9, "", "3.200e-09"),
        (math.inf, "up", "inf"),
    ],
)
def test_significant_never_claims_more(value: float, good: str, text: str) -> None:
    assert significant(value, 4, good) == text  # type: ignore[arg-type]


def test_significant_any_value_errs_on_the_bad_side_only() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        value = rng.uniform(-1, 1) * 10 ** rng.uniform(-12, 12)
        assert float(significant(value, 4, "up")) <= value <= float(significant(value, 4, "down"))
        assert abs(float(significant(value)) - value) <= abs(value) * 5.1e-4
