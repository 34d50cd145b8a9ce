"""Statistics of one tensor merged over batches: moments, a histogram, per-channel figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from profiler.metrics.sums import is_finite, sum_of_squares, wide_enough
from profiler.records import ChannelStats, Histogram, QuantError, TensorStats

_BINS = 128
_MASS_BINS = 16
_MASS_SAMPLE = 65536
_MASS_VALUES = 2**20  # most values of one tensor that are counted for the KL divergence
_HISTC_EXACT = 2**24  # torch.histc counts in float32, exactly up to here
_LARGE = 2**18
_LEAST_EXPONENT = -126
_FLOAT32_EXPONENT = 100  # beyond 2^+-100 the bins' edges are computed in float64
_CONSTANT = 1e-24  # var / mean square of a channel that never changes; one float32 step in a million values gives 3e-21


@dataclass
class Moments:
    """Count, mean and sum of squared deviations, merged by Chan's formula in float64."""

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    def update(self, x: Tensor) -> None:
        """Add a flat tensor of finite values."""
        count = x.numel()
        if count == 0:
            return
        var, mean = torch.var_mean(x.double(), correction=0)
        self.add(count, float(mean), float(var) * count)

    def add(self, count: int, mean: float, deviations: float) -> None:
        """Merge the moments of other values."""
        total = self.count + count
        delta = mean - self.mean
        self.deviations += deviations + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def var(self) -> float:
        """Population variance; 0 for an empty tensor."""
        return self.deviations / self.count if self.count else 0.0


class GrowingHistogram:
    """Counts in 128 equal bins over [-2^k, 2^k]; k grows by merging pairs of bins, so nothing is lost.

    2^k is above every value, so that no value lies on the outer edge, whose bin would depend on the order of batches.
    """

    def __init__(self) -> None:
        self.exponent: int | None = None
        self.counts = torch.zeros(_BINS, dtype=torch.int64)

    def update(self, x: Tensor, absmax: float) -> None:
        """Add a flat tensor of finite values with this largest magnitude."""
        needed = max(_LEAST_EXPONENT, math.frexp(absmax)[1])
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            self._double()
        bound = 2.0**self.exponent
        values = x if abs(self.exponent) <= _FLOAT32_EXPONENT else x.double()
        for part in torch.split(values, _HISTC_EXACT):
            self.counts += torch.histc(part, bins=_BINS, min=-bound, max=bound).to(torch.int64).cpu()

    def record(self) -> Histogram | None:
        """The histogram without empty ends, or None if nothing was added."""
        used = self.counts.nonzero().flatten()
        if self.exponent is None or used.numel() == 0:
            return None
        first, last = int(used[0]), int(used[-1])
        bound = 2.0**self.exponent
        width = 2 * bound / _BINS
        counts = tuple(int(c) for c in self.counts[first : last + 1])
        return Histogram(-bound + first * width, -bound + (last + 1) * width, counts)

    def _double(self) -> None:
        half = self.counts.reshape(-1, 2).sum(1)
        pad = torch.zeros(_BINS // 4, dtype=torch.int64)
        self.counts = torch.cat([pad, half, pad])
        assert self.exponent is not None
        self.exponent += 1


@dataclass
class ChannelSums:
    """Per-channel absmax and moments, merged by Chan's formula in float64."""

    absmax: Tensor
    count: int
    mean: Tensor
    deviations: Tensor

    @staticmethod
    def of(rows: Tensor) -> ChannelSums:
        """Sums of `[C, n]` finite values."""
        wide, count = rows.double(), rows.shape[1]
        var, mean = torch.var_mean(wide, dim=1, correction=0)
        return ChannelSums(wide.abs().amax(1), count, mean, var * count)

    def add(self, other: ChannelSums) -> None:
        """Merge the sums of another batch."""
        total = self.count + other.count
        delta = other.mean - self.mean
        self.absmax = torch.maximum(self.absmax, other.absmax)
        self.deviations = self.deviations + other.deviations + delta * delta * (self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    def total(self) -> tuple[int, float, float]:
        """Count, mean and sum of squared deviations of all channels together."""
        mean = self.mean.mean()
        deviations = self.deviations.sum() + self.count * ((self.mean - mean) ** 2).sum()
        return self.count * self.mean.numel(), float(mean), float(deviations)

    def record(self, scale: float | None) -> ChannelStats:
        """Counts of live channels, and of those whose std spans less than 3 steps of `scale`."""
        var = self.deviations / self.count
        live = var > _CONSTANT * (self.mean * self.mean + var)
        coarse = live & (var.sqrt() < 3 * scale) if scale is not None else torch.zeros_like(live)
        return ChannelStats(
            num_channels=self.absmax.numel(),
            num_live=int(live.sum()),
            num_coarse=int(coarse.sum()),
            absmax_max=float(self.absmax.max()),
            absmax_median=float(self.absmax.median()),
            widest_channel=int(self.absmax.argmax()),
        )


def channel_sums(values: Tensor, channel_axis: int) -> ChannelSums:
    """Per-channel sums of a finite tensor along any axis.

    Large images `[N, C, H, W]` are summed in float32 over each plane around the plane's own mean, and the planes are
    merged in float64: as right as float64 throughout, without a float64 copy.
    """
    is_large = channel_axis == 1 and values.dim() > 3 and values.numel() >= _LARGE and values.dtype is torch.float32
    if not is_large:
        return ChannelSums.of(values.transpose(0, channel_axis).flatten(1))
    planes = values.flatten(2)
    length = planes.shape[2]
    absmax = torch.maximum(planes.amax(2), -planes.amin(2)).amax(0).double()
    centre = planes.sum(2) / length
    around = planes - centre[:, :, None]
    shift = around.sum(2).double() / length
    deviations = torch.linalg.vector_norm(around, dim=2).double() ** 2 - shift**2 * length
    sums = [ChannelSums(absmax, length, *plane) for plane in zip(centre.double() + shift, deviations, strict=True)]
    for other in sums[1:]:
        sums[0].add(other)
    return sums[0]


@dataclass
class TensorSums:
    """Everything that is kept of one tensor."""

    num_values: int = 0
    num_nan: int = 0
    num_inf: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    moments: Moments = field(default_factory=Moments)
    histogram: GrowingHistogram = field(default_factory=GrowingHistogram)
    channels: ChannelSums | None = None
    num_clipped: int = 0

    def update(self, x: Tensor, channel_axis: int | None = None) -> None:
        """Add one tensor of real values; `channel_axis` turns per-channel figures on."""
        values = wide_enough(x)
        self.num_values += values.numel()
        flat = values.flatten()
        if not is_finite(flat):
            finite = torch.isfinite(flat)
            self.num_nan += int(torch.isnan(flat).sum())
            self.num_inf += int(torch.isinf(flat).sum())
            flat, channel_axis = flat[finite], None
        if flat.numel() == 0:
            return
        low, high = (float(v) for v in torch.aminmax(flat))
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.histogram.update(flat, max(abs(low), abs(high)))
        if channel_axis is None or values.dim() < 2:
            self.moments.update(flat)
            return
        sums = channel_sums(values, channel_axis)
        self.moments.add(*sums.total())
        if self.channels is None or self.channels.absmax.shape != sums.absmax.shape:
            self.channels = sums
        else:
            self.channels.add(sums)

    def count_clipped(self, codes: Tensor, quant_min: int, quant_max: int) -> None:
        """Add the number of codes at either end of the range."""
        self.num_clipped += int(((codes == quant_min) | (codes == quant_max)).sum())

    def record(self, scale: float | None = None) -> TensorStats:
        """The statistics; an empty tensor has range 0..0."""
        is_empty = self.moments.count == 0
        return TensorStats(
            num_values=self.num_values,
            num_nan=self.num_nan,
            num_inf=self.num_inf,
            minimum=0.0 if is_empty else self.minimum,
            maximum=0.0 if is_empty else self.maximum,
            mean=self.moments.mean,
            var=self.moments.var,
            clip_ratio=self.num_clipped / self.num_values if self.num_values else 0.0,
            histogram=self.histogram.record(),
            channels=None if self.channels is None else self.channels.record(scale),
        )


class MassHistogram:
    """Counts of reference and test in 16 bins of equal reference mass (edges from the first batch)."""

    def __init__(self, edges: Tensor) -> None:
        self.edges = edges
        self.reference = torch.zeros(edges.numel() + 1, dtype=torch.float64)
        self.test = torch.zeros_like(self.reference)

    @staticmethod
    def of(reference: Tensor) -> MassHistogram:
        """Edges at the quantiles of a sample; equal edges are merged."""
        step = max(1, reference.numel() // _MASS_SAMPLE)
        quantiles = torch.arange(1, _MASS_BINS, dtype=reference.dtype) / _MASS_BINS
        return MassHistogram(torch.unique(torch.quantile(reference[::step].cpu(), quantiles)))

    def update(self, *, reference: Tensor, test: Tensor) -> None:
        """Add flat tensors of equal length; of very large ones every k-th value, the same of both."""
        step = max(1, reference.numel() // _MASS_VALUES)
        reference, test = reference[::step].contiguous(), test[::step].contiguous()
        self.reference += self._counts(reference)
        self.test += self._counts(test)

    def kl(self) -> float:
        """KL(reference || test) in nats of the counts + 0.5; 0 for equal distributions, lower is better."""
        p, q = self.reference + 0.5, self.test + 0.5
        p, q = p / p.sum(), q / q.sum()
        return max(0.0, float((p * (p / q).log()).sum()))

    def _counts(self, x: Tensor) -> Tensor:
        """Counts between the edges, from the numbers of values below each edge."""
        index = torch.bucketize(x, self.edges.to(x), out_int32=True)
        return torch.bincount(index, minlength=self.edges.numel() + 1).double().cpu()


@dataclass
class QuantErrorSums:
    """What a quantizer of the test stage does to reference values: clipping against rounding."""

    count: int = 0
    num_clipped: int = 0
    clip_energy: float = 0.0
    signal_energy: float = 0.0

    def update(self, x: Tensor, scale: float, quant_min: int, quant_max: int) -> None:
        """Add a tensor of reference values, real; NaN and Inf do not count."""
        flat = wide_enough(x).flatten()
        if not is_finite(flat):
            flat = flat[torch.isfinite(flat)]
        self.count += flat.numel()
        self.signal_energy += sum_of_squares(flat)
        low, high = (quant_min - 0.5) * scale, (quant_max + 0.5) * scale
        outside = flat[(flat < low) | (flat > high)]
        self.num_clipped += outside.numel()
        self.clip_energy += sum_of_squares(outside - outside.clamp(quant_min * scale, quant_max * scale))

    def record(self, scale: float, std: float) -> QuantError:
        """Range against resolution; the SQNR of an empty or all-zero tensor is inf: zero has a code."""
        rounding = (self.count - self.num_clipped) * scale * scale / 12
        noise = rounding + self.clip_energy
        own = math.inf if self.signal_energy == 0 or noise == 0 else 10 * math.log10(self.signal_energy / noise)
        return QuantError(
            codes_per_std=std / scale,
            clip_ratio=self.num_clipped / self.count if self.count else 0.0,
            clip_energy=self.clip_energy,
            rounding_energy=rounding,
            sqnr_db=own,
        )
