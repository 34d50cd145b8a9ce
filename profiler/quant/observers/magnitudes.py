"""A mergeable histogram of magnitudes, and what can be read from it: percentiles and quantization errors."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from profiler.errors import ConfigError
from profiler.quant.affine import QInfo

OCTAVES = 16
_MANTISSA_BITS = 23
_NUM_FULLEST = 128
_HALF_WORD_BITS = 7  # mantissa bits in the upper half of a float32
_UPPER_HALF = 1 if sys.byteorder == "little" else 0


class MagnitudeHistogram:
    """Counts of |x| in buckets of the float32 format: `bins / 16` equal ones in each of the top 16 octaves.

    A bucket's number is read from the bits of the number, so batches merge exactly whatever their ranges: no range has
    to be known, nothing is re-binned. Zeros are left out: they are exact at any scale. Smaller values count in the
    lowest bucket.

    Args:
        bins: buckets in all, a power of two from 32 to 2**20.

    Raises:
        ConfigError: bins is no such number.
    """

    def __init__(self, bins: int = 2048) -> None:
        if not 32 <= bins <= 2**20 or bins & (bins - 1):
            raise ConfigError(f"bins is {bins}; expected a power of two from 32 to {2**20}")
        self.bins = bins
        self._bits = (bins // OCTAVES).bit_length() - 1
        self.counts: Tensor | None = None
        self.start = 0
        self.absmax = 0.0

    def add(self, values: Tensor, absmax: float, sample_limit: int | None = None) -> None:
        """Count a batch.

        Args:
            values: float32, any shape, finite.
            absmax: its largest magnitude.
            sample_limit: of a larger tensor every n-th value is counted n times, with an odd n, so that at least this
                many are; None counts all.
        """
        self.absmax = max(self.absmax, absmax)
        flat = values.reshape(-1)
        stride = 1 if sample_limit is None else max(flat.numel() // sample_limit, 1)
        stride -= 1 - stride % 2
        flat = flat if stride == 1 else flat[::stride].contiguous()
        raw = torch.bincount(self._buckets(flat)) * stride
        raw[:1] = 0
        self._merge(raw, 0)

    def edges(self) -> Tensor:
        """`[bins + 1]` edges of the buckets, float64."""
        device = None if self.counts is None else self.counts.device
        numbers = torch.arange(self.start, self.start + self.bins + 1, dtype=torch.int32, device=device)
        return (numbers << (_MANTISSA_BITS - self._bits)).view(torch.float32).double()

    def percentile(self, percent: float) -> float:
        """Magnitude below which `percent` percent of the non-zero magnitudes lie, linear inside its bucket."""
        if self.counts is None or percent >= 100:
            return self.absmax
        cumulated = self.counts.double().cumsum(0)
        wanted = percent / 100 * float(cumulated[-1])
        index = min(int(torch.searchsorted(cumulated, wanted)), self.bins - 1)
        inside = 1 - (float(cumulated[index]) - wanted) / max(float(self.counts[index]), 1.0)
        lower, upper = (float(edge) for edge in self.edges()[index : index + 2])
        return min(lower + inside * (upper - lower), self.absmax)

    def squared_errors(self, bounds: Tensor, info: QInfo) -> Tensor:
        """Squared quantization error for each candidate bound.

        Args:
            bounds: `[K]` positive bounds, float64.
            info: code range.

        Returns:
            `[K]` sums over the counted values: x^2 below half a step, scale^2 / 12 (the mean square of rounding) up to
            the largest code, the squared distance to it beyond (the one code more of the negative end is not used).
            The fullest buckets, where they are fine enough, are rounded at their centres instead: values that repeat
            do not spread over a step.
        """
        if self.counts is None:
            return torch.zeros_like(bounds)
        edges = self.edges().clamp_max(self.absmax)
        centres = (edges[:-1] + edges[1:]) / 2
        powers = torch.stack([torch.ones_like(centres), centres, centres**2]) * self.counts.double()
        sums = torch.nn.functional.pad(powers.cumsum(1), (1, 0))
        scales = bounds / info.half_range
        limits = scales * info.quant_max
        half = sums[:, torch.searchsorted(centres, scales / 2)]
        limit = sums[:, torch.searchsorted(centres, limits, right=True)]
        beyond = sums[:, -1:] - limit
        clipped = beyond[2] - 2 * limits * beyond[1] + limits**2 * beyond[0]
        total = half[2] + (limit[0] - half[0]) * scales**2 / 12 + clipped.clamp_min(0)
        return total + self._unlike_the_mean(centres, edges.diff(), scales, info)

    def _unlike_the_mean(self, centres: Tensor, widths: Tensor, scales: Tensor, info: QInfo) -> Tensor:
        """What the fullest buckets add to scale^2 / 12, `[K]`."""
        assert self.counts is not None
        counts, index = self.counts.topk(min(_NUM_FULLEST, self.bins))
        values, steps = centres[index], scales[:, None]
        codes = torch.round(values / steps)
        error = (values - codes * steps).square_().sub_(steps.square() / 12)
        is_inside = (codes >= 1) & (codes <= info.quant_max) & (widths[index] * 4 < steps)
        return torch.where(is_inside, error, 0.0) @ counts.double()

    def linear(self, bins: int) -> Tensor:
        """Counts `[bins]` in equal bins over [0, absmax], float64; each bucket is spread evenly over its width."""
        if self.counts is None or self.absmax == 0:
            return torch.zeros(bins, dtype=torch.float64)
        edges = self.edges()
        cumulated = torch.nn.functional.pad(self.counts.double().cumsum(0), (1, 0))
        wanted = torch.arange(bins + 1, dtype=torch.float64, device=edges.device) * (self.absmax / bins)
        index = torch.searchsorted(edges, wanted, right=True).sub(1).clamp(0, self.bins - 1)
        share = ((wanted - edges[index]) / (edges[index + 1] - edges[index])).clamp(0, 1)
        at = cumulated[index] + share * self.counts[index]
        at[-1] = cumulated[-1]
        return at.diff()

    def _buckets(self, flat: Tensor) -> Tensor:
        if self._bits == _HALF_WORD_BITS:  # the upper half word is sign, exponent and 7 bits: no arithmetic needed
            return flat.contiguous().view(torch.int16)[_UPPER_HALF::2] & 0x7FFF
        return (flat.contiguous().view(torch.int32) & 0x7FFFFFFF) >> (_MANTISSA_BITS - self._bits)

    def _merge(self, other: Tensor, other_start: int) -> None:
        """Add counts whose first one is bucket `other_start`; the window moves up with the largest value."""
        top = other_start + other.numel()
        start = max(top - self.bins, 0)
        counts = torch.zeros(self.bins, dtype=torch.int64, device=other.device)
        if self.counts is not None:
            start = max(start, self.start)
            _place(counts, start, self.counts.to(other.device), self.start)
        _place(counts, start, other, other_start)
        self.counts, self.start = counts, start


def _place(counts: Tensor, start: int, source: Tensor, source_start: int) -> None:
    """Add `source` to a window of buckets; what lies below it goes to its lowest bucket."""
    below = min(max(start - source_start, 0), source.numel())
    counts[0] += source[:below].sum()
    rest = source[below:]
    at = source_start + below - start
    counts[at : at + rest.numel()] += rest
