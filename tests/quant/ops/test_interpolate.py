from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from profiler.errors import UnsupportedOpError
from profiler.quant import QTensor
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.scale_keeping_cases import (
    SCALE,
    Call,
    assert_front_ends_run,
    assert_gradient_is_that_of_the_op,
    assert_moves_codes,
    assert_rounds_to_the_grid,
    in_calibration,
)

SIZES: list[dict[str, Any]] = [
    {"scale_factor": 2},
    {"size": (5, 13)},
    {"scale_factor": (0.6, 1.7)},
    {"scale_factor": 1.5, "recompute_scale_factor": True},
    {"size": (1, 1)},
    {"size": (7, 9)},
]
MODULES = {
    "upsample_nearest": nn.Upsample(scale_factor=2),
    "upsample_bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "upsample_bicubic": nn.Upsample(size=(9, 11), mode="bicubic", align_corners=True),
    "nearest_2d": nn.UpsamplingNearest2d(scale_factor=3),
    "bilinear_2d": nn.UpsamplingBilinear2d(scale_factor=2),
}


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_interpolate_nearest_moves_codes(mode: str, size: Any, dtype: str) -> None:
    assert_moves_codes(lambda x: F.interpolate(x, mode=mode, **size), (2, 3, 7, 9), dtype)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_interpolate_weighted_rounds_to_the_grid(mode: str, size: Any, align_corners: bool, dtype: str) -> None:
    assert_rounds_to_the_grid(
        lambda x: F.interpolate(x, mode=mode, align_corners=align_corners, **size), (2, 3, 7, 9), dtype
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_interpolate_area_is_the_rounded_window_mean(size: Any) -> None:
    assert_rounds_to_the_grid(lambda x: F.interpolate(x, mode="area", **size), (2, 3, 7, 9))


def test_interpolate_area_turns_ties_to_even() -> None:
    x_q = torch.tensor([[[0, 1, 1, 2, 2, 3]]], dtype=torch.int8)  # means 0.5, 1.5, 2.5
    assert F.interpolate(quantized(x_q, SCALE), size=3, mode="area").plain.tolist() == [[[0, 2, 2]]]


@pytest.mark.parametrize(("mode", "shape"), [("linear", (2, 3, 9)), ("trilinear", (2, 3, 5, 4, 6))])
@pytest.mark.parametrize(("align_corners", "dtype"), [(False, "qint8"), (True, "qint8"), (True, "qint16")])
def test_interpolate_line_and_volume_round_to_the_grid(mode: str, shape: Any, align_corners: bool, dtype: str) -> None:
    assert_rounds_to_the_grid(
        lambda x: F.interpolate(x, scale_factor=1.7, mode=mode, align_corners=align_corners), shape, dtype
    )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_interpolate_antialias_rounds_to_the_grid(mode: str) -> None:
    assert_rounds_to_the_grid(lambda x: F.interpolate(x, size=(4, 5), mode=mode, antialias=True), (2, 3, 17, 19))


def test_interpolate_bicubic_overshoot_saturates() -> None:
    x_q = torch.full((1, 1, 6, 6), 127, dtype=torch.int8)
    x_q[..., 3:] = -128
    y = F.interpolate(quantized(x_q, SCALE), scale_factor=3, mode="bicubic")
    real = F.interpolate(x_q.double(), scale_factor=3, mode="bicubic")
    assert float(real.max()) > 128
    assert isinstance(y, QTensor)
    assert torch.equal(y.plain.double(), real.round().clamp(-128, 127))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    mode=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_interpolate_any_shape_forms_are_equal(shape: Any, size: Any, mode: str) -> None:
    x_q = codes(shape)
    y, y_fq = (F.interpolate(form(x_q, SCALE), size=size, mode=mode) for form in (quantized, on_grid))
    assert isinstance(y, QTensor)
    assert tuple(y.shape) == (*shape[:2], *size)
    assert torch.equal(y.plain, y_fq.int_repr())


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_interpolate_extreme_scales_keep_the_codes(scale: float) -> None:
    x_q = codes((1, 2, 5, 5))
    y, y_fq = (F.interpolate(form(x_q, scale), scale_factor=2, mode="bilinear") for form in (quantized, on_grid))
    assert torch.equal(y.plain, y_fq.int_repr())


def test_interpolate_in_calibration_leaves_values_alone() -> None:
    x = torch.randn(1, 2, 5, 5)
    y = F.interpolate(in_calibration(x), scale_factor=2, mode="bilinear")
    assert torch.equal(y.dequantize(), F.interpolate(x, scale_factor=2, mode="bilinear"))


def test_interpolate_old_names_are_the_same_op() -> None:
    x = quantized(codes((1, 2, 5, 5)), SCALE)
    with pytest.warns(UserWarning, match="deprecated"):
        nearest, bilinear = F.upsample_nearest(x, scale_factor=2), F.upsample_bilinear(x, scale_factor=2)
    assert torch.equal(nearest.plain, F.interpolate(x, scale_factor=2).plain)
    assert torch.equal(bilinear.plain, F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True).plain)


def test_interpolate_unknown_mode_is_refused_with_its_line() -> None:
    with pytest.raises(UnsupportedOpError, match=r"mode 'sinc'.*test_interpolate\.py"):
        F.interpolate(quantized(codes((1, 2, 5, 5)), SCALE), size=3, mode="sinc")


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "area"])
def test_interpolate_gradient_is_that_of_the_float_op(mode: str) -> None:
    assert_gradient_is_that_of_the_op(lambda x: F.interpolate(x, scale_factor=2, mode=mode), (1, 2, 4, 5))


@pytest.mark.parametrize("name", MODULES)
def test_interpolate_modules_run_in_both_front_ends(name: str) -> None:
    assert_front_ends_run(MODULES[name], (2, 3, 6, 6))


def test_interpolate_function_runs_in_both_front_ends() -> None:
    assert_front_ends_run(Call(lambda x: F.interpolate(x, size=(9, 4), mode="bilinear")), (2, 3, 6, 6))
