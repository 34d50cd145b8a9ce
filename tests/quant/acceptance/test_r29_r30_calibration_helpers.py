"""R29, R30: weight_reconstruction and auto_calibrate, on toy nets and on the sample models (all of them: heavy)."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.quant import (
    FakeQuantState,
    MinMaxObserver,
    auto_calibrate,
    auto_calibration,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    get_default_calib_qconfig,
    set_fake_quantize,
    weight_reconstruction,
)
from profiler.quant.states import named_fake_quants
from sample_models import SAMPLES, digits
from sample_models.flows import Sample, calibrated_eager, calibrated_fx, fuse_parts
from tests.models import Residual, Stubbed, make
from tests.quant.stages import FRONT_ENDS

_LOGGER = logging.getLogger(__name__)
Batches = list[Tensor]


def images(count: int, seed: int) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(count)]


class Toy(Stubbed):
    """Two convolutions, and a linear layer that reads every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.head = nn.ReLU(), nn.Linear(6 * 64, 5)

    def body(self, x: Any) -> Any:
        return self.head(self.second(self.relu(self.first(x))).flatten(1))


def smooth_images(count: int, seed: int) -> Batches:
    """Images like real ones in that neighbours are alike."""
    return [nn.functional.interpolate(x[..., :3, :3], size=(8, 8), mode="bilinear") for x in images(count, seed)]


@torch.no_grad()
def l2(test: nn.Module, reference: nn.Module, batches: Batches) -> float:
    """L2 distance of the outputs, which are a tensor or a tuple."""
    total = 0.0
    for batch in batches:
        for y, r in zip(_tuple(test(batch)), _tuple(reference(batch)), strict=True):
            total += float((y - r).double().square().sum())
    return total**0.5


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def gemms(model: nn.Module) -> dict[str, Any]:
    """Convolutions and linears by path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def codes_of(op: Any) -> Tensor:
    fake_quant = op.weight_fake_quant
    shape = [-1 if axis == fake_quant.ch_axis else 1 for axis in range(op.weight.dim())]
    return op.weight.detach().double() / fake_quant.scale.detach().double().reshape(shape)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_r29_weights_end_on_the_grid_and_the_output_error_is_below_nearest_rounding(front_end: str) -> None:
    prepare, convert = FRONT_ENDS[front_end]
    model, batches = make(Toy), smooth_images(4, seed=1)
    nearest = prepare(copy.deepcopy(model), batches, default_calib_16bit_fake_quant_qconfig)
    rounded = prepare(copy.deepcopy(model), batches, default_calib_16bit_fake_quant_qconfig)
    before = {name: codes_of(op) for name, op in gemms(rounded).items()}
    scales = {name: op.weight_fake_quant.scale.clone() for name, op in gemms(rounded).items()}

    done = weight_reconstruction(rounded, batches)

    assert len(done) == len(before) == 3
    error, nearest_error = l2(rounded, model, batches), l2(nearest, model, batches)
    assert error < 0.9 * nearest_error
    for name, op in gemms(rounded).items():
        codes = codes_of(op)
        assert torch.equal(op.weight_fake_quant.scale, scales[name])
        assert float((codes - codes.round()).abs().max()) < 1e-4
        assert float((codes.round() - before[name].clamp(-128, 127)).abs().max()) < 1
        assert float((codes.round() - before[name]).abs().max()) > 0.5, "no weight went the other way"
        assert torch.equal(op.weight_fake_quant(op.weight), op.weight)
    expected = {name: codes_of(op).round() for name, op in gemms(rounded).items()}
    converted = convert(rounded)
    assert {name: op.weight.double().tolist() for name, op in gemms(converted).items()} == {
        name: codes.tolist() for name, codes in expected.items()
    }


def test_r29_observing_again_keeps_the_scales_and_the_codes() -> None:
    model = FRONT_ENDS["eager"][0](make(Residual), images(3, seed=1))
    weight_reconstruction(model, images(3, seed=1))
    kept = {n: (op.weight_fake_quant.scale.clone(), op.weight.clone()) for n, op in gemms(model).items()}

    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model(images(1, seed=3)[0])
    model.train()
    set_fake_quantize(model, FakeQuantState.QAT)
    model(images(1, seed=4)[0])

    for name, op in gemms(model).items():
        assert torch.equal(op.weight_fake_quant.scale, kept[name][0])
        assert torch.equal(op.weight_fake_quant(op.weight), kept[name][1])


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_r30_output_l2_is_not_worse_than_min_max_everywhere(front_end: str, caplog: pytest.LogCaptureFixture) -> None:
    prepare, _ = FRONT_ENDS[front_end]
    model, batches = make(Residual), images(4, seed=1)
    plain = prepare(
        copy.deepcopy(model), batches, get_default_calib_qconfig(calib_qkwargs={"observer": MinMaxObserver})
    )
    calib_model = prepare(copy.deepcopy(model), batches)

    with caplog.at_level(logging.INFO, "profiler.quant.calibration"):
        choice = auto_calibrate(calib_model, batches)

    assert choice.min_max_error == pytest.approx(l2(plain, model, batches), rel=1e-3)
    assert choice.error == pytest.approx(l2(calib_model, model, batches), rel=1e-3)
    assert choice.error < choice.min_max_error
    activations = [name for name, _ in named_fake_quants(calib_model) if "weight_fake_quant" not in name]
    assert sorted(choice.observers) == sorted(activations)
    assert choice.num_forwards <= 4 * (len(activations) * 3 + 4 + 4) + 1
    for number, (name, label) in enumerate(choice.observers.items(), start=1):
        op = name.removesuffix(".activation_post_process").replace("_generated_", "")
        assert f"{number}/{len(activations)} {op}: {label}" in caplog.text


def test_r30_the_alias_is_the_function() -> None:
    assert auto_calibration is auto_calibrate


class OneUselessOutlier(nn.Module):
    """The first feature is a thousand times the others, and no output depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        with torch.no_grad():
            self.linear.weight[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def test_r30_an_outlier_that_no_output_needs_is_clipped() -> None:
    batches = [torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for batch in batches:
        batch[0, 0] = 1000.0
    calib_model = FRONT_ENDS["fx"][0](OneUselessOutlier(), batches)

    choice = auto_calibrate(calib_model, batches, percentile_list=[99.0])

    assert choice.observers["x_activation_post_process.activation_post_process"] == "percentile 99"
    assert choice.error < 0.2 * choice.min_max_error


def sample_of(name: str) -> tuple[Any, Callable[[], nn.Module], Batches, Batches]:
    """Module of a sample, what makes its calibrated eager model, calibration batches, held-out batches."""
    module = importlib.import_module(SAMPLES[name])
    if name == "pitfalls":
        held_out = [digits.test_set()[0]]
        return module, lambda: module.calibrate(module.prepare(module.load())), module.calibration_batches(), held_out
    sample: Sample = module.flow_sample()
    if name == "yolov3":
        scenes = module.held_out_scenes()
        held_out = [scenes.images(rows) for rows in torch.arange(64).split(16)]
    elif name == "multitask":
        held_out = [module.held_out_digits().images()]
    else:
        held_out = [digits.normalise(digits.test_set()[0])]

    def calibrated() -> nn.Module:
        model = module.load()
        if name == "vit":
            return calibrated_fx(sample, model)
        fuse_parts(sample, model)
        return calibrated_eager(sample, model)

    return module, calibrated, module.calibration_batches(), held_out


def reconstruct_sample(name: str) -> None:
    module, calibrated, batches, held_out = sample_of(name)
    model, nearest, rounded = module.load(), calibrated(), calibrated()

    done = weight_reconstruction(rounded, batches)

    assert all(op.error <= op.nearest_error for op in done)
    for part, data in (("calibration", batches), ("held-out", held_out)):
        errors = l2(nearest, model, data), l2(rounded, model, data)
        _LOGGER.warning("%s %s: L2 nearest %.4f, AdaRound %.4f", name, part, *errors)
        assert errors[1] < errors[0], part
    _LOGGER.warning("%s metric: %.2f, %.2f", name, module.evaluate(nearest), module.evaluate(rounded))


def test_r29_pitfalls_has_a_smaller_output_error_on_held_out_images() -> None:
    reconstruct_sample("pitfalls")


@pytest.mark.heavy
@pytest.mark.parametrize("name", SAMPLES)
def test_r29_every_sample_has_a_smaller_output_error_on_held_out_data(name: str) -> None:
    reconstruct_sample(name)


def choose_for_sample(name: str, num_batches: int, batch_size: int) -> None:
    module, calibrated, batches, held_out = sample_of(name)
    batches = [batch[:batch_size] for batch in batches[:num_batches]]
    model, calib_model = module.load(), calibrated()

    choice = auto_calibrate(calib_model, batches)

    assert choice.error <= choice.min_max_error
    assert l2(calib_model, model, batches) == pytest.approx(choice.error, rel=2e-2)
    chosen = l2(calib_model, model, held_out)
    auto_calibrate(calib_model, batches, observer_list=["min_max"])
    min_max = l2(calib_model, model, held_out)
    _LOGGER.warning("%s calibration: L2 min_max %.4f, chosen %.4f", name, choice.min_max_error, choice.error)
    _LOGGER.warning("%s held-out: L2 min_max %.4f, chosen %.4f", name, min_max, chosen)
    _LOGGER.warning("%s forwards: %d", name, choice.num_forwards)


def test_r30_pitfalls_is_not_worse_than_min_max() -> None:
    choose_for_sample("pitfalls", 4, 32)


@pytest.mark.heavy
@pytest.mark.parametrize("name", SAMPLES)
def test_r30_every_sample_is_not_worse_than_min_max(name: str) -> None:
    choose_for_sample(name, 10, 4 if name == "yolov3" else 32)


def test_r30_qconfig_of_a_calib_model_is_left_alone() -> None:
    calib_model = FRONT_ENDS["eager"][0](make(Residual), images(2, seed=1), default_calib_8bit_fake_quant_qconfig)
    observers = {n: type(fq.activation_post_process) for n, fq in named_fake_quants(calib_model)}
    auto_calibrate(calib_model, images(2, seed=1))
    assert {n: type(fq.activation_post_process) for n, fq in named_fake_quants(calib_model)} == observers
