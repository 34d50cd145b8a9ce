"""The values at which rows and outputs are flagged, from the report's metrics where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from profiler.records import MetricInfo


@dataclass(frozen=True)
class Limits:
    """What still counts as good: the least SQNR (dB) and cosine, the largest op error on the same input."""

    sqnr_db: float = 20.0
    cosine: float = 0.995
    atol_scales: float = 5.0

    @classmethod
    def of(cls, metrics: Sequence[MetricInfo]) -> Limits:
        """Gives the limits of a report; a metric that it does not declare keeps its default."""
        names = {field.name for field in fields(cls)}
        return cls(**{item.name: item.limit for item in metrics if item.limit is not None and item.name in names})
