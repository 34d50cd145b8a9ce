"""reset_part: a part forgets what it observed, and is calibrated afresh."""

from __future__ import annotations

import pytest
import torch

from profiler.errors import NotCalibratedError, StateError
from profiler.quant import (
    FakeQuantState,
    FixedScaleObserver,
    default_calib_8bit_fake_quant_qconfig,
    freeze_part,
    get_default_qconfig,
    reset_part,
    set_fake_quantize,
)
from profiler.quant.states import named_fake_quants
from tests.quant.stages import calibrate
from tests.quant.two_heads import PREPARE, batches, calibrated, two_heads


@pytest.fixture(params=PREPARE)
def front_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_reset_part_calibrates_afresh_on_new_data_alone(front_end: str) -> None:
    model, fresh = calibrated(front_end), PREPARE[front_end](two_heads(), default_calib_8bit_fake_quant_qconfig)
    calibrate(fresh, batches(7.0))
    for name, _ in model.named_children():
        reset_part(model, name)
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    with pytest.raises(NotCalibratedError, match="fake quant is on, but no scale"):
        model(batches()[0])

    calibrate(model, batches(7.0))

    for (_, again), (_, first) in zip(named_fake_quants(model), named_fake_quants(fresh), strict=True):
        assert torch.equal(again.scale, first.scale)


@pytest.mark.parametrize("observer", ["percentile", "mse", "kl", "mix", "clip_std", "histogram", "min_max"])
def test_reset_part_makes_every_observer_as_new(observer: str) -> None:
    qconfig = get_default_qconfig(activation_observer=observer)
    model, fresh = PREPARE["fx"](two_heads(), qconfig), PREPARE["fx"](two_heads(), qconfig)
    calibrate(model, batches(30.0))
    calibrate(fresh, batches())
    for name, _ in model.named_children():
        reset_part(model, name)
    calibrate(model, batches())
    for (_, again), (_, first) in zip(named_fake_quants(model), named_fake_quants(fresh), strict=True):
        assert torch.equal(again.scale, first.scale)


def test_reset_part_leaves_a_given_scale() -> None:
    qkwargs = {"observer": FixedScaleObserver, "scale": 0.25}
    model = calibrated("fx", get_default_qconfig(activation_qkwargs=qkwargs))
    reset_part(model, "first")
    assert float(model.get_submodule("first.fc").activation_post_process.scale) == 0.25  # type: ignore[union-attr,arg-type]


def test_reset_part_refuses_what_is_frozen(front_end: str) -> None:
    model = calibrated(front_end)
    freeze_part(model, "first.fc")
    with pytest.raises(StateError, match=r"reset_part: first\.fc.* is frozen; call unfreeze_part first"):
        reset_part(model, "first")
