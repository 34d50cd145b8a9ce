from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant import DeQuantStub, QTensor, QuantStub
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.scale_keeping_cases import (
    SCALE,
    Call,
    assert_front_ends_run,
    assert_gradient_is_that_of_the_op,
    assert_rounds_to_the_grid,
    in_calibration,
)
from tests.quant.stages import FRONT_ENDS

MODES, PADDINGS = ["bilinear", "nearest", "bicubic"], ["zeros", "border", "reflection"]
IMAGE_CASES = list(itertools.product(MODES, PADDINGS, [True, False]))
VOLUME_CASES = [case for case in IMAGE_CASES if case[0] != "bicubic"]


def grid_of(*shape: int, reach: float = 1.5) -> Tensor:
    """Positions inside and outside the input."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1) * reach


def sample(x: Any, grid: Tensor, *options: Any) -> Any:
    """F.grid_sample at the positions in the dtype of x."""
    return F.grid_sample(x, grid.double() if x.dtype == torch.float64 else grid, *options)


@pytest.mark.parametrize(("mode", "padding", "align_corners"), IMAGE_CASES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_grid_sample_image_rounds_to_the_grid(mode: str, padding: str, align_corners: bool, dtype: str) -> None:
    grid = grid_of(2, 5, 6, 2)
    assert_rounds_to_the_grid(lambda x: sample(x, grid, mode, padding, align_corners), (2, 3, 7, 9), dtype)


@pytest.mark.parametrize(("mode", "padding", "align_corners"), VOLUME_CASES)
def test_grid_sample_volume_rounds_to_the_grid(mode: str, padding: str, align_corners: bool) -> None:
    grid = grid_of(2, 3, 4, 5, 3)
    assert_rounds_to_the_grid(lambda x: sample(x, grid, mode, padding, align_corners), (2, 3, 4, 5, 6))


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    out=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    case=st.sampled_from(IMAGE_CASES),
    reach=st.sampled_from([0.5, 1.0, 7.0, 1e6]),
)
def test_grid_sample_any_shape_and_reach(size: Any, out: Any, case: Any, reach: float) -> None:
    x_q, grid = codes(size), grid_of(size[0], *out, 2, reach=reach)
    y, y_fq = (F.grid_sample(form(x_q, SCALE), grid, *case) for form in (quantized, on_grid))
    assert isinstance(y, QTensor)
    assert tuple(y.shape) == (*size[:2], *out)
    assert torch.equal(y.plain, y_fq.int_repr())


def test_grid_sample_identity_grid_gives_the_codes_back() -> None:
    x_q = codes((1, 2, 5, 7))
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 2, 5, 7], align_corners=True)
    assert torch.equal(F.grid_sample(quantized(x_q, SCALE), grid, align_corners=True).plain, x_q)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_grid_sample_positions_that_are_no_numbers_lie_outside(bad: float) -> None:
    grid = torch.full((1, 2, 2, 2), bad)
    assert not bool(F.grid_sample(quantized(codes((1, 2, 5, 7)), SCALE), grid, align_corners=False).plain.any())


@pytest.mark.parametrize("grid_dtype", ["qint8", "qint16"])
def test_grid_sample_quantized_grid_is_read_at_its_real_values(grid_dtype: str) -> None:
    step = 0.0078 if grid_dtype == "qint8" else 3e-5
    x_q, grid_q = codes((2, 3, 7, 9)), codes((2, 5, 6, 2), 3, grid_dtype)
    real = quantized(grid_q, step, grid_dtype).dequantize()
    expected = F.grid_sample(quantized(x_q, SCALE), real, align_corners=False)
    y = F.grid_sample(quantized(x_q, SCALE), quantized(grid_q, step, grid_dtype), align_corners=False)
    y_fq = F.grid_sample(on_grid(x_q, SCALE), on_grid(grid_q, step, grid_dtype), align_corners=False)
    assert isinstance(y, QTensor)
    assert torch.equal(y.plain, expected.plain)
    assert torch.equal(y_fq.int_repr(), expected.plain)


def test_grid_sample_float_input_with_quantized_grid_stays_float() -> None:
    y = F.grid_sample(torch.randn(1, 2, 4, 4), on_grid(codes((1, 3, 3, 2)), 0.0078), align_corners=False)
    assert not isinstance(y, QTensor)


def test_grid_sample_in_calibration_leaves_values_alone() -> None:
    x, grid = torch.randn(1, 2, 5, 5), grid_of(1, 3, 3, 2)
    y = F.grid_sample(in_calibration(x), grid, align_corners=False)
    assert torch.equal(y.dequantize(), F.grid_sample(x, grid, align_corners=False))


def test_grid_sample_gradient_is_that_of_the_float_op() -> None:
    grid = grid_of(1, 3, 3, 2)
    assert_gradient_is_that_of_the_op(lambda x: F.grid_sample(x, grid, align_corners=False), (1, 2, 4, 5))


def test_grid_sample_gradient_reaches_the_grid() -> None:
    grid = grid_of(1, 3, 3, 2, reach=0.8).requires_grad_()
    x_q = codes((1, 2, 4, 5))
    x = QTensor.wrap((x_q.float() * SCALE).requires_grad_(), torch.tensor(SCALE), "qint8")
    F.grid_sample(x, grid, align_corners=False).dequantize().sum().backward()
    assert grid.grad is not None
    assert bool(grid.grad.isfinite().all())
    assert float(grid.grad.abs().max()) > 0


def test_grid_sample_unknown_mode_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match=r"grid_sample with 'cubic', 'zeros'.*test_grid_sample\.py"):
        F.grid_sample(quantized(codes((1, 2, 5, 7)), SCALE), grid_of(1, 2, 2, 2), "cubic")


class Warp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.quant_grid, self.dequant = QuantStub(), QuantStub(), DeQuantStub()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Any, grid: Any) -> Any:
        y = F.grid_sample(self.conv(self.quant(x)), self.quant_grid(grid), align_corners=False)
        return self.dequant(y)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_grid_sample_runs_in_both_front_ends(front_end: str) -> None:
    prepare, convert = FRONT_ENDS[front_end]
    torch.manual_seed(0)
    model, inputs = Warp().eval(), {"x": torch.randn(2, 3, 6, 6), "grid": grid_of(2, 4, 4, 2, reach=1.0)}
    prepared = prepare(model, [inputs])
    converted = convert(prepared)
    y, y_fq, y_q = model(**inputs), prepared(**inputs), converted(**inputs)
    step = float(y.detach().abs().max()) / 127
    assert float((y - y_fq).detach().abs().max()) < 8 * step
    assert float((y_fq - y_q).detach().abs().max()) < 2.1 * step
    assert_equals_onnx(converted, inputs["x"], inputs["grid"])


@pytest.mark.parametrize(("mode", "padding"), list(itertools.product(MODES, PADDINGS)))
def test_grid_sample_equals_onnx_runtime(mode: str, padding: str) -> None:
    grid = grid_of(2, 4, 5, 2)
    assert_front_ends_run(Call(lambda x: F.grid_sample(x, grid, mode, padding, False)), (2, 3, 6, 7))
