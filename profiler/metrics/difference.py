"""Sums of a pair of tensors, merged over batches in float64, and the metrics made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from profiler.metrics.distribution import MassHistogram
from profiler.metrics.sums import is_finite, sum_of_magnitudes, sum_of_products, sum_of_squares, wide_enough
from profiler.records import PairStats


@dataclass
class PairSums:
    """Running sums of reference r and test t, error d = t - r; only values finite on both sides count.

    `has_distribution` also keeps what the KL divergence needs, the dearest of the metrics.
    """

    num_values: int = 0
    reference_squared: float = 0.0
    test_squared: float = 0.0
    product: float = 0.0
    error_squared: float = 0.0
    error_abs: float = 0.0
    error_max: float = 0.0
    has_distribution: bool = True
    masses: MassHistogram | None = None

    def update(self, *, reference: Tensor, test: Tensor) -> None:
        """Add one pair of tensors of equal shape, real values, any float dtype."""
        r, t = wide_enough(reference).flatten(), wide_enough(test).flatten()
        if not (is_finite(r) and is_finite(t)):
            finite = torch.isfinite(r) & torch.isfinite(t)
            r, t = r[finite], t[finite]
        if r.numel() == 0:
            return
        error = t - r
        self.num_values += r.numel()
        self.reference_squared += sum_of_squares(r)
        self.test_squared += sum_of_squares(t)
        self.product += sum_of_products(r, t)
        self.error_squared += sum_of_squares(error)
        self.error_abs += sum_of_magnitudes(error)
        self.error_max = max(self.error_max, *(abs(float(v)) for v in torch.aminmax(error)))
        if self.has_distribution:
            self.masses = self.masses or MassHistogram.of(r)
            self.masses.update(reference=r, test=t)

    def stats(self, scale: float | None) -> PairStats:
        """Metrics of all that was added.

        Args:
            scale: the test output's scale, for errors in its steps; None where it has no single scale.
        """
        count = max(self.num_values, 1)
        rms = math.sqrt(self.error_squared / count)
        return PairStats(
            num_values=self.num_values,
            cosine=cosine(self),
            sqnr_db=sqnr_db(self.reference_squared, self.error_squared),
            mse=self.error_squared / count,
            l1=self.error_abs / count,
            atol=self.error_max,
            kl=self._kl(),
            atol_scales=None if scale is None else self.error_max / scale,
            rms_lsb=None if scale is None else rms / scale,
        )

    def _kl(self) -> float | None:
        if not self.has_distribution:
            return None
        return self.masses.kl() if self.masses is not None else 0.0


def cosine(sums: PairSums) -> float:
    """Cosine similarity, -1..1, higher is better; both all zero (or empty): 1, one of them: 0."""
    if sums.reference_squared == 0 or sums.test_squared == 0:
        return 1.0 if sums.reference_squared == sums.test_squared else 0.0
    value = sums.product / math.sqrt(sums.reference_squared * sums.test_squared)
    return min(1.0, max(-1.0, value))


def sqnr_db(signal_squared: float, error_squared: float) -> float:
    """Signal to quantization noise ratio in dB, higher is better.

    Identical (or empty) tensors: inf. A zero reference with an error: -inf.
    """
    if error_squared == 0:
        return math.inf
    return -math.inf if signal_squared == 0 else 10 * math.log10(signal_squared / error_squared)
