"""Constants that grow with the batch: found from their contents at two batch sizes, computed from the input's size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from profiler.quant.deploy.graph import GraphBuilder, Value, constant


@dataclass(frozen=True)
class Line:
    """Integers `rise * N + start`, of any shape, at batch size N.

    Attributes:
        rise: int64.
        start: int64, of the same shape.
    """

    rise: Tensor
    start: Tensor

    def at_most_one(self) -> Tensor | None:
        """The numbers as a Reshape may have them: -1 in the place of the only one that grows, or None."""
        grows = self.rise != 0
        if int(grows.sum()) != 1 or bool(((self.start == 0) & ~grows).any()):  # a 0 of Reshape means "as it was"
            return None
        return torch.where(grows, -1, self.start)


@dataclass(frozen=True)
class Spread:
    """A tensor repeated along the axes that grow.

    Attributes:
        content: the tensor, of size 1 along those axes.
        shape: its full shape.
    """

    content: Tensor
    shape: Line


@dataclass(frozen=True)
class Ramp:
    """Positions `start + N * per_size + n * per_row`, n = 0 .. N - 1 along the middle of three axes.

    Attributes:
        start: int64 `[A, 1, B]`, like the next two.
        per_size: what each number grows by with the batch size.
        per_row: distance from one row of the batch to the next.
        shape: shape that `[A, N, B]` is brought to.
    """

    start: Tensor
    per_size: Tensor
    per_row: Tensor
    shape: Line


Growing = Line | Spread | Ramp


@dataclass(frozen=True)
class Sizes:
    """Two different batch sizes at which a model was recorded."""

    first: int
    second: int

    def line(self, a: Tensor, b: Tensor) -> Line | None:
        """Through integers at the two sizes; None where no integers go through."""
        rise, start = _through(a, b, self)
        return None if rise is None else Line(rise, start)

    def growing(self, a: Tensor, b: Tensor) -> Growing | None:
        """How a constant depends on the batch size, from its contents at the two; None where nothing here fits.

        Args:
            a: contents at the first size.
            b: at the second: of the same dtype and number of dimensions.
        """
        whole_a, whole_b = _whole_numbers(a), _whole_numbers(b)
        if a.shape == b.shape:
            return None if whole_a is None or whole_b is None else self.line(whole_a, whole_b)
        shape = self.line(torch.tensor(a.shape), torch.tensor(b.shape))
        if shape is None:
            return None
        axes = [d for d in range(a.dim()) if a.shape[d] != b.shape[d]]
        content = a[tuple(slice(0, 1) if d in axes else slice(None) for d in range(a.dim()))]
        if _equal(content.expand_as(a), a) and _equal(content.expand_as(b), b):
            return Spread(content.contiguous(), shape)
        if whole_a is None or whole_b is None or len(axes) != 1 or int(shape.start[axes[0]]) != 0:
            return None
        return next(self._ramps(whole_a, whole_b, axes[0], shape), None)

    def _ramps(self, a: Tensor, b: Tensor, axis: int, shape: Line) -> Iterator[Ramp]:
        """Every way to see the growing axis as `[outer, N, inner]` in which the numbers are a ramp."""
        repeat = int(shape.rise[axis])
        before, after = a.shape[:axis].numel(), a.shape[axis + 1 :].numel()
        for outer in (d for d in range(1, repeat + 1) if repeat % d == 0):
            lead, tail = before * outer, repeat // outer * after
            rows_a, rows_b = a.reshape(lead, self.first, tail), b.reshape(lead, self.second, tail)
            per_size, start = _through(rows_a[:, :1], rows_b[:, :1], self)
            per_row = rows_a[:, 1:2] - rows_a[:, :1]
            if per_size is not None and _is_ramp(rows_a, per_row) and _is_ramp(rows_b, per_row):
                yield Ramp(start, per_size, per_row, shape)


class GrowingConstants:
    """Writes them at the head of a graph.

    Args:
        source: input whose axis 0 is the batch.
        taken: names of the graph that must not be used again.
    """

    def __init__(self, source: Value, taken: set[str]) -> None:
        scope = "batch"
        while any(name.startswith(scope) for name in taken):
            scope += "_"
        self.builder, self.source = GraphBuilder(scope), source
        self._size: Value | None = None

    def name_of(self, growing: Growing, dtype: torch.dtype) -> str:
        """Name of the value that holds it, in a dtype that has its numbers."""
        if isinstance(growing, Line):
            value = self._line(growing)
        elif isinstance(growing, Spread):
            value = self.builder.node("Expand", constant(growing.content), self._line(growing.shape))
        else:
            value = self._ramp(growing)
        return self.builder.cast(value, dtype).name

    @property
    def size(self) -> Value:
        """The batch size, an int64 scalar."""
        if self._size is None:
            shape = self.builder.node("Shape", self.source, dtype=torch.int64, start=0, end=1)
            self._size = self.builder.node("Squeeze", shape, constant([0], torch.int64))
        return self._size

    def _line(self, line: Line) -> Value:
        return self._plus(self._times(self.size, line.rise), line.start)

    def _ramp(self, ramp: Ramp) -> Value:
        zero, one = constant(0, torch.int64), constant(1, torch.int64)
        rows = self.builder.node("Range", zero, self.size, one)
        column = self.builder.node("Reshape", rows, constant([-1, 1], torch.int64))
        base = self._line(Line(ramp.per_size, ramp.start))
        positions = self.builder.node("Add", self._times(column, ramp.per_row), base)
        known = ramp.shape.at_most_one()
        return self.builder.node("Reshape", positions, self._line(ramp.shape) if known is None else constant(known))

    def _times(self, x: Value, factor: Tensor) -> Value:
        return self.builder.node("Mul", x, constant(factor))

    def _plus(self, x: Value, term: Tensor) -> Value:
        return self.builder.node("Add", x, constant(term)) if bool((term != 0).any()) else x


def _whole_numbers(a: Tensor) -> Tensor | None:
    """Sizes, counts and positions as int64; None for codes and what else is no whole number that float32 has."""
    if a.dtype in (torch.int64, torch.int32):
        return a.to(torch.int64)
    is_whole = a.dtype in (torch.float32, torch.float64) and bool(((a == a.round()) & (a.abs() < 2**24)).all())
    return a.to(torch.int64) if is_whole else None


def _through(a: Tensor, b: Tensor, sizes: Sizes) -> tuple[Tensor | None, Tensor]:
    """Slope and value at 0 of the line through `a` at the first and `b` at the second size."""
    step = sizes.second - sizes.first
    rise = (b - a).div(step, rounding_mode="floor")
    start = a - rise * sizes.first
    return (rise if torch.equal(start + rise * sizes.second, b) else None), start


def _is_ramp(rows: Tensor, per_row: Tensor) -> bool:
    return torch.equal(rows, rows[:, :1] + torch.arange(rows.shape[1]).reshape(1, -1, 1) * per_row)


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())
