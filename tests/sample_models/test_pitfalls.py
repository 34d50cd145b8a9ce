"""The sample with planted faults: each is there, each costs, and repairing keeps the float function."""

from __future__ import annotations

import functools
from collections.abc import Collection

import pytest
import torch
from torch import nn

from profiler.quant import QTensor, convert
from sample_models import digits, pitfalls
from sample_models.pitfalls import FAULTS, Pitfalls
from sample_models.train_pitfalls import QUIET_CHANNEL, channel_absmax, outputs_of
from sample_models.training import WEIGHTS_DIR
from tests.sample_models.quantizing import logits_of, sqnr_db

LOGITS_TOLERANCE = 1e-4


def network(repaired: bool | Collection[str] = False) -> Pitfalls:
    model = pitfalls.load(repaired)
    assert isinstance(model, Pitfalls)
    return model


@functools.cache
def calib_model(repaired: bool | frozenset[str]) -> nn.Module:
    return pitfalls.calibrate(pitfalls.prepare(network(repaired)))


@functools.cache
def pixels() -> torch.Tensor:
    return torch.cat(pitfalls.calibration_batches())


def logits(model: nn.Module) -> torch.Tensor:
    return logits_of(model, lambda images: images)


def output_scale(name: str) -> float:
    """Scale of a module's output in the faulty network."""
    scale = calib_model(False).get_submodule(name).get_submodule("activation_post_process").scale
    assert isinstance(scale, torch.Tensor)
    return float(scale)


def int8_sqnr_db(repaired: bool | frozenset[str]) -> float:
    return sqnr_db(reference=logits(network()), test=logits(calib_model(repaired)))


def test_float_accuracy_is_at_least_96_percent() -> None:
    assert pitfalls.evaluate(network()) >= 96.0


def test_weights_are_smaller_than_3_mb() -> None:
    assert (WEIGHTS_DIR / "pitfalls.safetensors").stat().st_size < 3_000_000


@pytest.mark.parametrize("repaired", [True, *({name} for name in FAULTS)], ids=str)
def test_repair_keeps_the_float_logits(repaired: bool | Collection[str]) -> None:
    torch.testing.assert_close(logits(network(repaired)), logits(network()), rtol=0, atol=LOGITS_TOLERANCE)


def test_repaired_with_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown faults \\['bn'\\]"):
        pitfalls.build({"bn"})


def test_int8_loses_at_least_5_points_and_the_repairs_win_most_back() -> None:
    accuracy = pitfalls.evaluate(network())
    for stage in (lambda model: model, convert):  # fake quant, then true integers
        faulty = pitfalls.evaluate(stage(calib_model(False)))
        repaired = pitfalls.evaluate(stage(calib_model(True)))

        assert accuracy - faulty >= 5.0
        assert repaired - faulty >= 0.8 * (accuracy - faulty)


# What each fault costs the logits when it is the only one left, in dB; a bit is 6 dB. The input's lost bit and the
# rounded logits hide behind the rounding of the layers between: they are real, and not what hurts here.
LEAST_COST_DB = {
    "shared_conv": 12.0,
    "large_channel": 12.0,
    "second_consumer": 6.0,
    "functional_relu": 10.0,
}


@pytest.mark.parametrize("fault", LEAST_COST_DB)
def test_fault_alone_costs_logits(fault: str) -> None:
    assert int8_sqnr_db(True) - int8_sqnr_db(frozenset(FAULTS) - {fault}) >= LEAST_COST_DB[fault]


@pytest.mark.parametrize("fault", ["shared_conv", "large_channel"])
def test_fault_alone_costs_a_point(fault: str) -> None:
    only = calib_model(frozenset(FAULTS) - {fault})

    assert pitfalls.evaluate(calib_model(True)) - pitfalls.evaluate(only) >= 1.0


@pytest.mark.parametrize("fault", LEAST_COST_DB)
def test_repairing_one_fault_of_all_helps(fault: str) -> None:
    assert int8_sqnr_db(frozenset({fault})) > int8_sqnr_db(False)


def test_raw_input_is_one_sided_until_repaired() -> None:
    faulty, repaired = network(), network({"raw_input"})
    (raw,), (normalised,) = outputs_of(faulty, faulty.quant, pixels()), outputs_of(repaired, repaired.quant, pixels())

    assert (float(raw.min()), float(raw.max())) == (0.0, 255.0)
    assert normalised.min() < -0.9
    assert normalised.max() > 0.9
    assert repaired.quant.scale == 1 / 128


def test_raw_input_loses_every_second_grey_level_until_repaired() -> None:
    assert output_scale("quant") == pytest.approx(2.0, rel=0.05)

    stub = calib_model(True).get_submodule("quant")
    x_fq = outputs_of(calib_model(True), stub, pixels())[0]
    x = x_fq.dequantize() if isinstance(x_fq, QTensor) else x_fq
    assert torch.equal(x, digits.normalise(pixels()))


def test_shared_conv_serves_ranges_more_than_8_times_apart_until_repaired() -> None:
    faulty, repaired = network(), network({"shared_conv"})
    rows, columns = outputs_of(faulty, faulty.branches.shared, pixels())

    assert rows.abs().max() > 8 * columns.abs().max()
    assert len(outputs_of(repaired, repaired.branches.shared, pixels())) == 1
    assert len(outputs_of(repaired, repaired.branches.shared_copy, pixels())) == 1


def test_large_channel_is_60_times_the_others_until_repaired() -> None:
    for repaired, ratio in ((False, 60.0), (True, 1.0)):
        model = network(repaired)
        absmax = channel_absmax(outputs_of(model, model.wide, pixels())[0])

        assert float(absmax.max() / absmax.median()) == pytest.approx(ratio, rel=1e-3)


def test_large_channel_leaves_less_than_3_codes_per_std() -> None:
    model = network()
    wide = outputs_of(model, model.wide, pixels())[0]

    assert float(wide.std()) / output_scale("wide.conv") < 3.0


def test_second_consumer_reads_the_convolution_until_repaired() -> None:
    for repaired, read_by_side in ((False, "conv"), (True, "bn")):
        model = network(repaired)
        read: list[torch.Tensor] = []
        handle = model.split.side.register_forward_pre_hook(lambda _module, args, read=read: read.append(args[0]))
        produced = outputs_of(model, model.split.get_submodule(read_by_side), pixels())[0]
        handle.remove()

        assert torch.equal(read[0], produced)


def test_second_consumer_keeps_the_norm_from_fusing_until_repaired() -> None:
    for repaired, expected in ((False, nn.BatchNorm2d), (True, nn.Identity)):
        model = network(repaired)
        model.fuse_modules()

        assert isinstance(model.split.bn, expected)


def test_functional_relu_follows_an_unfused_convolution_until_repaired() -> None:
    faulty, repaired = network(), network({"functional_relu"})
    faulty.fuse_modules()
    repaired.fuse_modules()

    assert not any(isinstance(module, nn.ReLU) for module in faulty.mix.modules())
    assert isinstance(repaired.mix.relu, nn.Identity)


def test_functional_relu_throws_most_of_the_range_away() -> None:
    model = network()
    mix = outputs_of(model, model.mix.conv, pixels())[0]

    assert -mix.min() > 30 * mix.max()
    assert int(channel_absmax(mix).argmax()) == QUIET_CHANNEL
    assert mix[:, QUIET_CHANNEL].max() < 0


def test_int8_output_is_fake_quantized_until_repaired() -> None:
    faulty, repaired = logits(calib_model(False)), logits(calib_model(frozenset({"int8_output"})))

    assert len(torch.unique(faulty)) <= 256
    assert len(torch.unique(repaired)) > 256


def test_prepare_for_qat_trains() -> None:
    qat_model = pitfalls.prepare(network(True), purpose="qat")
    qat_model.train()

    qat_model(pixels()[:8]).square().mean().backward()

    assert all(parameter.grad is not None for parameter in qat_model.parameters())
