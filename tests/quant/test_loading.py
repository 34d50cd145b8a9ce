from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from profiler.errors import PrepareError
from profiler.quant import FakeQuantState, load_calib_state_dict, prepare_qat, prepare_qat_fx, set_fake_quantize
from profiler.quant import default_calib_8bit_fake_quant_qconfig as calib_qconfig
from profiler.quant import default_qat_8bit_fake_quant_qconfig as qat_qconfig
from profiler.quant.states import journal_of, named_fake_quants
from tests.models import InPlaceAdd, Residual, images, make
from tests.quant.stages import FRONT_ENDS, eager, fx

STAGE = {"eager": eager, "fx": fx}


def prepared(front_end: str, qconfig: Any, cls: type[nn.Module] = Residual, seed: int = 1) -> Any:
    model = make(cls, seed)
    if front_end == "fx":
        return prepare_qat_fx(model, {"": qconfig})
    model.qconfig = qconfig
    return prepare_qat(model)


def scales(model: nn.Module) -> dict[str, list[float]]:
    return {name: fq.scale.tolist() for name, fq in named_fake_quants(model)}


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_load_state_dict_after_validation_keeps_validation(front_end: str) -> None:
    source = STAGE[front_end](make(Residual), images())
    set_fake_quantize(source, FakeQuantState.CALIBRATION)
    checkpoint = source.state_dict()
    target = prepared(front_end, calib_qconfig).eval()
    set_fake_quantize(target, FakeQuantState.VALIDATION)
    target.load_state_dict(checkpoint)
    states = {(fq.is_observer_on, fq.is_fake_quant_on) for _, fq in named_fake_quants(target)}
    assert states == {(False, True)}
    assert {int(fq.observer_enabled) for _, fq in named_fake_quants(target)} == {0}
    set_fake_quantize(source.eval(), FakeQuantState.VALIDATION)
    assert torch.equal(target(images()[0]), source(images()[0]))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_calib_checkpoint_loads_strictly_into_qat_and_back(front_end: str) -> None:
    calib = STAGE[front_end](make(Residual), images())
    qat = prepared(front_end, qat_qconfig)
    result = qat.load_state_dict(calib.state_dict(), strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert scales(qat) == scales(calib)
    back = prepared(front_end, calib_qconfig)
    back.load_state_dict(qat.state_dict(), strict=True)
    assert scales(back) == scales(calib)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_loaded_qat_model_without_training_equals_calib_model(front_end: str) -> None:
    calib = STAGE[front_end](make(Residual), images())
    qat = prepared(front_end, qat_qconfig).eval()
    qat.load_state_dict(calib.state_dict())
    set_fake_quantize(qat, FakeQuantState.VALIDATION)
    assert torch.equal(qat(images()[0]), calib(images()[0]))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_loaded_bounds_of_a_clipping_observer_become_those_of_the_scale(front_end: str) -> None:
    calib = STAGE[front_end](make(Residual), images())
    checkpoint = calib.state_dict()
    clipped = next(
        n for n, fq in named_fake_quants(calib) if "weight" not in n and not fq.activation_post_process.is_fixed
    )
    checkpoint[f"{clipped}.activation_post_process.max_val"] = torch.tensor(1000.0)  # raw extremes, not the scale's
    qat = prepared(front_end, qat_qconfig)
    qat.load_state_dict(checkpoint)
    fake_quant = dict(named_fake_quants(qat))[clipped]
    bound = float(fake_quant.scale) * 127.5
    assert float(fake_quant.activation_post_process.max_val) == pytest.approx(bound, rel=1e-6)
    assert float(fake_quant.activation_post_process.min_val) == pytest.approx(-bound, rel=1e-6)
    fake_quant.train()(torch.tensor([-2 * bound, 2 * bound]))
    assert float(fake_quant.scale) == pytest.approx(bound * 1.01 / 127.5, rel=1e-5)


def test_load_state_dict_creates_generated_modules_from_their_keys() -> None:
    calib = eager(make(InPlaceAdd), images())
    generated = {n for n, _ in calib.named_modules() if "_generated_" in n}
    assert generated
    target = prepared("eager", calib_qconfig, InPlaceAdd)
    assert not any("_generated_" in n for n, _ in target.named_modules())
    target.load_state_dict(calib.state_dict(), strict=True)
    assert {n for n, _ in target.named_modules() if "_generated_" in n} == generated


def test_load_state_dict_generated_modules_take_the_models_state_name_and_journal() -> None:
    calib = eager(make(InPlaceAdd), images())
    for state in (FakeQuantState.VALIDATION, FakeQuantState.CALIBRATION):
        target = prepared("eager", calib_qconfig, InPlaceAdd).eval()
        set_fake_quantize(target, state)
        target.load_state_dict(calib.state_dict())
        found = {(fq.is_observer_on, fq.is_fake_quant_on, fq.training) for _, fq in named_fake_quants(target)}
        assert found == {(*state.value, state is FakeQuantState.CALIBRATION)}
        assert all(fq.name == name for name, fq in named_fake_quants(target))
        assert {id(fq.journal) for _, fq in named_fake_quants(target)} == {id(journal_of(target))}


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_converted_model_loads_its_own_checkpoint_after_a_forward(front_end: str) -> None:
    make_stage, convert_it = FRONT_ENDS[front_end]
    first, second = (convert_it(make_stage(make(Residual, seed), images())) for seed in (0, 3))
    first(images()[0])
    first.load_state_dict(second.state_dict(), strict=True)
    assert torch.equal(first(images()[0]), second(images()[0]))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_load_calib_state_dict_gives_weights_and_scales(front_end: str) -> None:
    calib = STAGE[front_end](make(Residual), images())
    qat = prepared(front_end, qat_qconfig, seed=2)
    load_calib_state_dict(qat, calib.state_dict())
    assert scales(qat) == scales(calib)
    set_fake_quantize(qat.eval(), FakeQuantState.VALIDATION)
    assert torch.equal(qat(images()[0]), calib(images()[0]))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_load_calib_state_dict_of_another_model_names_keys_and_loads_nothing(front_end: str) -> None:
    checkpoint = STAGE[front_end](make(Residual), images()).state_dict()
    dropped = next(name for name in checkpoint if name.endswith("scale"))
    del checkpoint[dropped]
    checkpoint["neck.weight"] = torch.ones(1)
    qat = prepared(front_end, qat_qconfig, seed=2)
    before = {name: value.clone() for name, value in qat.state_dict().items()}
    with pytest.raises(PrepareError, match=rf"1 missing: {dropped}; 1 unexpected: neck.weight; prepare both"):
        load_calib_state_dict(qat, checkpoint)
    assert all(torch.equal(value, before[name]) for name, value in qat.state_dict().items())


def test_load_calib_state_dict_other_shape_is_named() -> None:
    checkpoint = fx(make(Residual), images()).state_dict()
    name = next(n for n in checkpoint if n.endswith("head.weight"))
    checkpoint[name] = checkpoint[name][:1]
    with pytest.raises(PrepareError, match=rf"size mismatch for {name}"):
        load_calib_state_dict(prepared("fx", qat_qconfig), checkpoint)


def test_load_calib_state_dict_into_float_model_says_prepare() -> None:
    with pytest.raises(PrepareError, match="Residual has no fake quants; prepare it first"):
        load_calib_state_dict(make(Residual), {})
