"""SegmentLUT: any elementwise function; exact on int8 codes, piecewise linear on int16 codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError
from profiler.quant.modules import QuantOp
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.lookup import finite_gradient, table_codes
from profiler.quant.ops.parameters import FakeQuantWithParameters, with_parameters
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor

NUM_SEGMENTS = 8
STRATEGIES = ("evenly", "curvature")
_PROBES = 4096  # where the curvature of a function is looked at


@dataclass(frozen=True)
class Segments:
    """How a function is approximated; see SegmentLUT for the fields."""

    function: Callable[[Tensor], Tensor]
    is_centrosymmetric: bool
    dividing_points: tuple[float, ...] | None
    input_range: tuple[float, float] | None
    strategy: str
    gradients: tuple[float, float] | None
    num_entries: int

    def over(self, x: QTensor) -> Segments:
        """The same with the input range of a quantized value, where none was given."""
        if self.input_range is not None:
            return self
        scale = float(x.scale)
        return replace(self, input_range=(x.info.quant_min * scale, x.info.quant_max * scale))

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Increasing inputs `[N]` and the function there, float64; between them it is linear."""
        assert self.input_range is not None
        low, high = self.input_range
        low = max(low, 0.0) if self.is_centrosymmetric else low
        ends = [low, *(p for p in self._dividing_points(low, high) if p > low)]
        steps = torch.arange(self.num_entries, dtype=torch.float64) / self.num_entries
        parts = [a + (b - a) * steps for a, b in pairwise(ends)]
        x = torch.cat([*parts, torch.tensor(ends[-1:], dtype=torch.float64)])
        if self.is_centrosymmetric:
            x = torch.cat([-x.flip(0), x[x > 0]])
            y = torch.sign(x) * self.function(x.abs())
        else:
            y = self.function(x)
        finite = y[torch.isfinite(y)]
        return x, torch.nan_to_num(y, nan=0.0).clamp(finite.min(), finite.max())  # a pole gives the last finite node

    def interpolate(self, x: Tensor) -> Tensor:
        """The piecewise linear function; beyond the nodes it goes on with `gradients`, or constant without."""
        at, values = (t.to(x) for t in _nodes(self))
        inside = x.clamp(at[0], at[-1])
        index = torch.searchsorted(at, inside.detach().contiguous(), right=True).clamp(1, at.numel() - 1)
        left, right = at[index - 1], at[index]
        share = (inside - left) / (right - left)
        y = values[index - 1] + (values[index] - values[index - 1]) * share
        if self.gradients is None:
            return y
        return y + (x - at[0]).clamp_max(0) * self.gradients[0] + (x - at[-1]).clamp_min(0) * self.gradients[1]

    def _dividing_points(self, low: float, high: float) -> Sequence[float]:
        if self.dividing_points is not None:
            return self.dividing_points
        if self.strategy == "evenly":
            return [low + (high - low) * (k + 1) / NUM_SEGMENTS for k in range(NUM_SEGMENTS)]
        return _points_by_curvature(self.function, low, high)


@lru_cache(maxsize=64)
def _nodes(segments: Segments) -> tuple[Tensor, Tensor]:
    return segments.nodes()


def _points_by_curvature(function: Callable[[Tensor], Tensor], low: float, high: float) -> list[float]:
    """Ends of segments with equal integrals of sqrt|f''|: equally good linear pieces.

    Source:
        de Boor, Good approximation by splines with variable knots, 1973: the knots that balance the error of linear
        interpolation.
    """
    x = torch.linspace(low, high, _PROBES, dtype=torch.float64)
    y = torch.nan_to_num(function(x), nan=0.0, posinf=0.0, neginf=0.0)
    bend = (y[2:] - 2 * y[1:-1] + y[:-2]).abs().sqrt()
    total = torch.cumsum(bend + bend.mean() * 0.1 + 1e-12, 0)  # a tenth evenly: straight parts get segments too
    goals = total[-1] * torch.arange(1, NUM_SEGMENTS, dtype=torch.float64) / NUM_SEGMENTS
    return [*x[1:-1][torch.searchsorted(total, goals)].tolist(), high]


class SegmentLUT(QuantOp):
    """Any elementwise function as a table.

    In float it is the function itself. Quantized, int8 inputs read an exact table of 256 entries. int16 inputs read
    eight segments with evenly spaced entries each, linear between them; fake quant computes with the same segments, so
    that what they cost is seen before convert.

    Args:
        simulated_func: elementwise function of a float tensor.
        is_centrosymmetric: f(-x) = -f(x): the segments cover positive inputs and are mirrored.
        dividing_points: eight increasing right ends of the segments; None: by `auto_divide_strategy`.
        input_range: lowest and highest input of the segments; None: the range of the input's codes.
        auto_divide_strategy: "evenly", or "curvature": more segments where the function bends.
        inverse_func: accepted; the input range is known from the input's scale.
        gradients: slopes below and above the segments; None: constant there.
        num_entries_per_table: entries of one segment.

    Raises:
        ConfigError: an argument cannot be used.
    """

    def __init__(
        self,
        simulated_func: Callable[[Tensor], Tensor],
        is_centrosymmetric: bool = False,
        dividing_points: Sequence[float] | None = None,
        input_range: Sequence[float] | None = None,
        auto_divide_strategy: str = "evenly",
        inverse_func: Callable[[Tensor], Tensor] | None = None,
        gradients: Sequence[float] | None = None,
        num_entries_per_table: int = 64,
    ) -> None:
        super().__init__()
        points = None if dividing_points is None else tuple(float(p) for p in dividing_points)
        if points is not None and (len(points) != NUM_SEGMENTS or list(points) != sorted(set(points))):
            raise ConfigError(f"SegmentLUT: dividing_points are {points}; expected {NUM_SEGMENTS} increasing numbers")
        if auto_divide_strategy not in STRATEGIES:
            raise ConfigError(f"SegmentLUT: auto_divide_strategy is {auto_divide_strategy!r}; use one of {STRATEGIES}")
        if num_entries_per_table < 1:
            raise ConfigError(f"SegmentLUT: num_entries_per_table is {num_entries_per_table}; expected at least 1")
        self.segments = Segments(
            simulated_func, is_centrosymmetric, points, _pair(input_range, "input_range"), auto_divide_strategy,
            _pair(gradients, "gradients"), num_entries_per_table,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        """The function itself."""
        return self.segments.function(input)


def _pair(values: Sequence[float] | None, name: str) -> tuple[float, float] | None:
    if values is None:
        return None
    if len(values) != 2:
        raise ConfigError(f"SegmentLUT: {name} is {values}; expected two numbers")
    return float(values[0]), float(values[1])


class FakeQuantSegmentLUT(FakeQuantWithParameters, SegmentLUT):
    """SegmentLUT with a fake-quantized output."""

    spec_name = "segment_lut"

    def operands_for(self, input: Tensor) -> dict[str, Any]:
        """The segments of this input's codes; the function itself where one table holds every code exactly."""
        if isinstance(input, QTensor) and input.qdtype == "qint16":
            return {"segments": self.segments.over(input), "is_approximated": True}
        return {"segments": self.segments}


def segment_lut_codes(out: OutputQuant, input: QTensor, segments: Segments, is_approximated: bool = False) -> QTensor:
    """Codes of the function (int8 input) or of its piecewise linear approximation (int16 input)."""
    if input.qdtype == "qint16":
        return table_codes(out, input, segments.over(input).interpolate, ("segment_lut", segments))
    return table_codes(out, input, segments.function, ("segment_lut", segments))


def _segment_lut_float(input: Tensor, segments: Segments, is_approximated: bool = False) -> Tensor:
    return segments.interpolate(input) if is_approximated else segments.function(finite_gradient(input))


def _segment_lut(module: nn.Module, qconfig: QConfig) -> nn.Module:
    return with_parameters(FakeQuantSegmentLUT, module, qconfig)


SEGMENT_LUT = register(
    OpSpec("segment_lut", Family.FUNCTION, modules=(SegmentLUT,), fake_quant=_segment_lut, saturates=True,
           bind=lambda module: {"segments": module.segments}, float_fn=_segment_lut_float,
           integer_fn=segment_lut_codes, note="any function: exact table for int8, eight linear segments for int16")
)  # fmt: skip
