"""Runs a weighted op's integer form on the 8-bit kernels, a cache-sized piece at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from profiler.quant.affine import QInfo, round_half_even
from profiler.quant.blocks import row_blocks
from profiler.quant.integer_kernels import ExactSums, Geometry, exact_sums
from profiler.quant.requantize import requantize_rows

# Float32 sums held at once: small enough to be reused by the next piece while still in cache.
_PIECE_ELEMENTS = 2**20


@dataclass(frozen=True)
class FastPlan:
    """What the run needs besides the codes.

    `multiplier` `[C]` makes codes of sums, or real values where `out_dtype` is float32; `other_multiplier` `[C]` makes
    sums of the other operand's codes; `lowest`, `highest` are codes (or for float32 `[C]` sums that ReLU6 allows).
    """

    sums: ExactSums
    geometry: Geometry
    kernel_size: tuple[int, int]
    multiplier: Tensor
    other_multiplier: Tensor | None
    lowest: float | None
    highest: float | Tensor | None
    out_dtype: torch.dtype

    def output_shape(self, image: Tensor) -> tuple[int, int, int, int]:
        """`[N, C, H, W]` of the output."""
        g = self.geometry
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(image.shape[2:], g.padding, g.dilation, self.kernel_size, g.stride, strict=True)
        )
        return image.shape[0], self.multiplier.shape[0], height, width


@dataclass(frozen=True)
class Target:
    """What becomes of the sums: their scale `[C]`, the other operand's multiplier `[C]`, activation, output dtype."""

    acc_scale: Tensor
    other_multiplier: Tensor | None
    activation: str
    out_scale: Tensor | None
    out_info: QInfo | None

    @property
    def bounds(self) -> tuple[float | None, float | Tensor | None]:
        """Lowest and highest code that the activation leaves; without output codes its bounds of the sums."""
        is_relu6 = self.activation == "relu6"
        if self.out_scale is None or self.out_info is None:
            return 0.0 if self.activation else None, round_half_even(6.0 / self.acc_scale) if is_relu6 else None
        highest = float(self.out_info.quant_max)
        if is_relu6:
            highest = min(highest, float(round_half_even(6.0 / self.out_scale)))
        return 0.0 if self.activation else float(self.out_info.quant_min), highest


def fast_plan(
    geometry: Geometry | None, weight: Tensor, bias_q: Tensor | None, x_dtype: torch.dtype, room: float, target: Target
) -> FastPlan | None:
    """The plan of an op, or None where the kernels cannot run it exactly; arguments as in `exact_sums`."""
    if geometry is None:
        return None
    weight = weight.reshape(*weight.shape[:2], *(1,) * (4 - weight.dim()), *weight.shape[2:])
    sums = exact_sums(weight, bias_q, geometry, x_dtype, room)
    if sums is None:
        return None
    return FastPlan(
        sums,
        geometry,
        (weight.shape[2], weight.shape[3]),
        target.acc_scale if target.out_scale is None else target.acc_scale / target.out_scale,
        target.other_multiplier,
        *target.bounds,
        torch.float32 if target.out_info is None else target.out_info.torch_dtype,
    )


def run(plan: FastPlan, image: Tensor, other: Tensor | None) -> Tensor:
    """Output codes of input codes.

    Args:
        plan: what `IntegerGemm` made for these scales.
        image: codes `[N, C, H, W]`, best channels last.
        other: codes of the fused add's other operand, of the output's shape, or None.

    Returns:
        `[N, C, H, W]` codes, channels last; contiguous float32 where the output has high precision.
    """
    shape = plan.output_shape(image)
    is_codes = plan.out_dtype is not torch.float32
    layout = torch.channels_last if is_codes else torch.contiguous_format
    out = torch.empty(shape, dtype=plan.out_dtype, memory_format=layout)
    # One image of one row is a linear op: its rows lie along the width.
    axis, size = (3, shape[3]) if plan.kernel_size == (1, 1) and shape[0] == shape[2] == 1 else (0, shape[0])
    step = max(1, _PIECE_ELEMENTS * size // max(1, out.numel()))
    for start in range(0, size, step):
        length = min(step, size - start)
        piece = image.narrow(axis, start, length)
        result = out.narrow(axis, start, length)
        sums, *later = (sums_of(piece) for sums_of, _ in plan.sums.parts)
        beside = None if other is None else _rows(other.narrow(axis, start, length))
        _finish(plan, _rows(sums), [_rows(t) for t in later], beside, _rows(result) if is_codes else None)
        if not is_codes:
            _place(sums, result)
    return out


def _finish(plan: FastPlan, sums: Tensor, later: list[Tensor], other: Tensor | None, out: Tensor | None) -> None:
    """Rows `[M, C]` of sums to rows of codes, or in place to real values where there is no `out`."""
    given = [*later, *(t for t in (other, out) if t is not None)]
    for piece, *rest in row_blocks(sums, *given):
        result = rest.pop() if out is not None else None
        operand = rest.pop() if other is not None else None
        if not plan.sums.is_single:
            _add_up(plan, piece, rest, operand)
        elif operand is not None:
            piece.add_(_in_accumulator_steps(operand, plan))
        if result is not None:
            assert isinstance(plan.lowest, float)
            assert isinstance(plan.highest, float)
            requantize_rows(piece, plan.multiplier, plan.lowest, plan.highest, result)
        else:
            _make_real(plan, piece)


def _add_up(plan: FastPlan, first: Tensor, later: list[Tensor], other: Tensor | None) -> None:
    """The sum of all parts into the first: in float64, exact below 2**53, then rounded to float32 once."""
    total = torch.zeros_like(first, dtype=torch.float64)
    for values, (_, worth) in zip([first, *later], plan.sums.parts, strict=True):
        total.add_(values.to(torch.float64).mul_(worth))
    if other is not None:
        total.add_(_in_accumulator_steps(other, plan))
    if plan.sums.bias is not None:
        total.add_(plan.sums.bias)
    first.copy_(total)


def _place(real: Tensor, out: Tensor) -> None:
    out.copy_(real)


def _make_real(plan: FastPlan, sums: Tensor) -> None:
    if plan.lowest is not None:
        sums.clamp_min_(plan.lowest)
    if isinstance(plan.highest, Tensor):
        torch.minimum(sums, plan.highest, out=sums)
    sums.mul_(plan.multiplier)


def _in_accumulator_steps(other: Tensor, plan: FastPlan) -> Tensor:
    """The other operand of a fused add: product in float32, rounded once."""
    assert plan.other_multiplier is not None
    return round_half_even(other.to(torch.float32).mul_(plan.other_multiplier))


def _rows(x: Tensor) -> Tensor:
    """`[N, C, H, W]` as `[N * H * W, C]`, without a copy where x lies channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
