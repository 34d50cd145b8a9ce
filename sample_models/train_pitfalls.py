"""Trains the pitfalls sample, plants its faults, and writes its weights: `python -m sample_models.train_pitfalls`.

The network is trained in good health, on normalised pixels. Then each fault that lies in the weights is planted by an
exact rescaling: a factor on one side of a ReLU or a norm, its inverse on the other. The float function stays as it was.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sample_models import digits, pitfalls
from sample_models.pitfalls_repairs import LARGE_FACTOR, PIXEL_SCALE
from sample_models.training import TrainingPlan, fit, save_weights

PLAN = TrainingPlan(epochs=60)
RANGE_RATIO = 48.0  # range of the rows' branch over that of the columns' branch, in the shared convolution
CHANNEL_SPREAD = 64.0  # widest over narrowest channel before the norm that cannot fuse
NEGATIVE_RATIO = 40.0  # lowest negative over highest positive value before the functional ReLU
QUIET_CHANNEL = 0  # channel of `mix` that is trained to stay below zero
_QUIET_LEVEL = 2.0
_QUIET_WEIGHT = 0.05


def train(plan: TrainingPlan = PLAN, num_images: int = digits.NUM_TRAIN) -> pitfalls.Pitfalls:
    """A freshly trained network in eval mode that reads normalised pixels; its faults are not planted yet."""
    torch.manual_seed(plan.seed)
    model = pitfalls.Pitfalls()
    pixels, labels = digits.train_set()
    outputs: dict[str, torch.Tensor] = {}
    handle = model.mix.conv.register_forward_hook(lambda _module, _args, out: outputs.update(mix=out))
    try:
        fit(model, digits.normalise(pixels[:num_images]), labels[:num_images], plan, lambda _: _quiet(outputs["mix"]))
    finally:
        handle.remove()
    return model


def _quiet(mix: torch.Tensor) -> torch.Tensor:
    """A loss that keeps one channel negative, as channels that ReLU has silenced are in many trained networks."""
    return _QUIET_WEIGHT * F.relu(mix[:, QUIET_CHANNEL] + _QUIET_LEVEL).mean()


@torch.no_grad()
def plant(model: pitfalls.Pitfalls) -> None:
    """Plants every fault that lies in the weights; the model then reads raw pixels."""
    images = torch.cat(digits.calibration_batches())
    _plant_shared_conv(model, images)
    _plant_large_channel(model, images)
    _plant_second_consumer(model, images)
    _plant_functional_relu(model, images)
    _plant_raw_input(model)


def outputs_of(model: nn.Module, module: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of each call of `module` in one forward of `model`."""
    outputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _args, out: outputs.append(out.detach().clone()))
    try:
        with torch.no_grad():
            model(images)
    finally:
        handle.remove()
    return outputs


def channel_absmax(x: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each channel of `[N, C, H, W]`."""
    return x.abs().amax(dim=(0, 2, 3))


def _plant_shared_conv(model: pitfalls.Pitfalls, images: torch.Tensor) -> None:
    rows, columns = outputs_of(model, model.branches.shared, images)
    factor = rows.abs().max() / columns.abs().max() / RANGE_RATIO
    _scale_norm_output(model.branches.columns.bn, factor)
    model.branches.columns_out.conv.weight /= factor


def _plant_large_channel(model: pitfalls.Pitfalls, images: torch.Tensor) -> None:
    """Gives all channels one range first; the channel that fires most sparsely then becomes the large one."""
    wide = outputs_of(model, model.wide, images)[0]
    absmax = channel_absmax(wide)
    is_live = absmax > 0
    factors = torch.where(is_live, 1.0 / absmax, 1.0)
    density = torch.where(is_live, wide.std(dim=(0, 2, 3)) / absmax, torch.inf)
    factors[density.argmin()] *= LARGE_FACTOR
    _scale_norm_output(model.wide.bn, factors)
    model.narrow.conv.weight /= factors[:, None, None]


def _plant_second_consumer(model: pitfalls.Pitfalls, images: torch.Tensor) -> None:
    absmax = channel_absmax(outputs_of(model, model.split.conv, images)[0])
    factors = torch.logspace(0.0, -1.0, len(absmax), base=CHANNEL_SPREAD) / absmax
    _scale_norm_input(model.split.bn, factors)
    model.split.conv.weight *= factors[:, None, None, None]
    model.split.side.conv.weight /= factors[:, None, None]


def _plant_functional_relu(model: pitfalls.Pitfalls, images: torch.Tensor) -> None:
    mix = outputs_of(model, model.mix.conv, images)[0]
    factor = NEGATIVE_RATIO * mix.max() / -mix[:, QUIET_CHANNEL].min()
    model.mix.conv.weight[QUIET_CHANNEL] *= factor
    model.mix.conv.bias[QUIET_CHANNEL] *= factor  # type: ignore[index]
    model.fc.weight[:, QUIET_CHANNEL] /= factor


def _plant_raw_input(model: pitfalls.Pitfalls) -> None:
    assert model.stem.bn.running_mean is not None
    model.stem.bn.running_mean += model.stem.conv.weight.sum(dim=(1, 2, 3))
    model.stem.conv.weight /= PIXEL_SCALE


def _scale_norm_output(bn: nn.BatchNorm2d, factors: torch.Tensor) -> None:
    """Multiplies what the norm gives, per channel."""
    bn.weight.mul_(factors)
    bn.bias.mul_(factors)


def _scale_norm_input(bn: nn.BatchNorm2d, factors: torch.Tensor) -> None:
    """Keeps what the norm gives when its input is multiplied per channel; exact in spite of `eps`."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    var = bn.running_var.clone()
    bn.running_mean *= factors
    bn.running_var *= factors**2
    bn.weight.mul_(torch.sqrt(bn.running_var + bn.eps) / (factors * torch.sqrt(var + bn.eps)))


def main() -> None:
    """Trains, plants, saves, and prints the held-out accuracy in float."""
    model = train()
    plant(model)
    path = save_weights(model, pitfalls.NAME)
    print(f"{path.name}: {pitfalls.evaluate(model):.2f} % of {digits.NUM_TEST} held-out images")


if __name__ == "__main__":
    main()
