from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError
from profiler.quant import (
    FakeQuantState,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    fuse_modules,
    prepare_qat_fx,
    set_fake_quantize,
)
from profiler.quant.naming import op_name
from profiler.quant.states import journal_of, named_fake_quants
from tests.models import (
    CalledTwice,
    DictOutput,
    FrozenNorm,
    InPlaceAdd,
    InPlaceRelu,
    IntegerInput,
    NestedLoop,
    Residual,
    SharedModule,
    WithFunctional,
    images,
    make,
)
from tests.quant.stages import eager, fx

NETS = (Residual, SharedModule, CalledTwice, InPlaceAdd, InPlaceRelu, NestedLoop, WithFunctional, FrozenNorm)
QAT = {"": default_qat_8bit_fake_quant_qconfig}


@pytest.mark.parametrize("cls", NETS)
def test_prepare_qat_fx_float_model_is_untouched_bit_for_bit(cls: type[nn.Module]) -> None:
    model, x = make(cls), images()[0]
    expected = model(x)
    types = {n: (type(m), m.training) for n, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    prepared = fx(model, images())
    assert {n: (type(m), m.training) for n, m in model.named_modules()} == types
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model(x), expected)
    own = {t.data_ptr() for t in [*model.parameters(), *model.buffers()] if t.numel()}
    assert not own & {t.data_ptr() for t in [*prepared.parameters(), *prepared.buffers()] if t.numel()}


@pytest.mark.parametrize("cls", NETS)
def test_prepare_qat_fx_without_rounding_equals_float(cls: type[nn.Module]) -> None:
    prepared = fx(make(cls), images())
    set_fake_quantize(prepared, FakeQuantState._FLOAT)
    torch.testing.assert_close(prepared(images()[0]), make(cls)(images()[0]), rtol=1e-4, atol=1e-5)


def fused_in_eager(model: Any) -> Any:
    """What the fx front end fuses by itself, by hand."""
    if isinstance(model, Residual):
        for block in (model.stem, model.block):
            fuse_modules(block, list(block.fuse_names), inplace=True)
    return model


UNFUSED = (SharedModule, CalledTwice)
SAME = (SharedModule, Residual)


@pytest.mark.parametrize("cls", SAME)
def test_eager_and_fx_of_one_net_give_equal_scales_outputs_and_names(cls: type[nn.Module]) -> None:
    model = make(cls)
    by_fx, by_eager = fx(model, images()), eager(fused_in_eager(make(cls)), images())

    def scales(prepared: nn.Module) -> dict[str, list[float]]:
        return {
            op_name(n.removesuffix(".activation_post_process").removesuffix(".weight_fake_quant"))
            + ("/w" if "weight" in n else ""): fq.scale.tolist()
            for n, fq in named_fake_quants(prepared)
        }

    eager_scales, fx_scales = scales(by_eager), scales(by_fx)
    shared = set(eager_scales) & set(fx_scales)
    assert shared == set(eager_scales) == set(fx_scales)
    assert eager_scales == fx_scales
    for x in images():
        assert torch.equal(by_fx(x), by_eager(x))


def test_prepare_qat_fx_shared_module_has_one_scale() -> None:
    prepared = fx(make(SharedModule), images())
    assert len([n for n, _ in named_fake_quants(prepared) if "weight" in n]) == 1


def test_prepare_qat_fx_module_called_twice_has_one_set_of_generated_modules() -> None:
    prepared = fx(make(CalledTwice), images())
    names = {n for n, m in prepared.named_modules() if hasattr(m, "to_integer")}
    assert {"inner._generated_add_0", "inner._generated_add_1", "_generated_add_0"} <= names


def test_prepare_qat_fx_keyword_only_input_and_dict_output() -> None:
    batches = [{"image": x} for x in images()]
    model = make(DictOutput)
    prepared = fx(model, batches)
    result, expected = prepared(image=images()[0]), model(image=images()[0])
    assert set(result) == {"y", "parts", "nothing"}
    assert result["nothing"] is None
    assert torch.allclose(result["y"], expected["y"], atol=0.05)


def test_prepare_qat_fx_integer_input_goes_through_the_embedding() -> None:
    model = make(IntegerInput)
    tokens = [torch.randint(0, 10, (2, 5)) for _ in range(3)]
    assert torch.allclose(fx(model, tokens)(tokens[0]), model(tokens[0]), atol=0.1)


@pytest.mark.parametrize("training", [False, True])
def test_prepare_qat_fx_keeps_the_training_flag_and_names_fake_quants(training: bool) -> None:
    prepared = prepare_qat_fx(make(Residual).train(training), QAT)
    assert prepared.training is training
    assert {fq.training for _, fq in named_fake_quants(prepared)} == {training}
    assert all(fq.name == name for name, fq in named_fake_quants(prepared))


def test_prepare_qat_fx_frozen_module_flag_is_kept() -> None:
    model = make(FrozenNorm).train()
    assert not model.bn.training
    assert not prepare_qat_fx(model, QAT).bn.training


def test_prepare_qat_fx_attributes_are_preserved_on_request() -> None:
    model = make(Residual)
    model.classes = ["a", "b"]
    assert prepare_qat_fx(model, QAT, {"preserved_attributes": ["classes"]}).classes == ["a", "b"]


def test_prepare_qat_fx_deepcopy_keeps_journal_and_works() -> None:
    prepared = fx(make(Residual), images())
    other = copy.deepcopy(prepared)
    assert torch.equal(other(images()[0]), prepared(images()[0]))
    journal = journal_of(other)
    assert journal is not None
    assert journal is not journal_of(prepared)
    set_fake_quantize(other, FakeQuantState.CALIBRATION)
    assert journal.events[-1].state == "CALIBRATION"


def test_prepare_qat_fx_output_is_a_plain_tensor_and_empty_batch_passes() -> None:
    prepared = fx(make(Residual), images())
    assert type(prepared(images()[0])) is Tensor
    assert prepared(torch.zeros(0, 3, 8, 8)).shape == (0, 5)


def test_prepare_qat_fx_example_inputs_leave_statistics_and_flags_alone() -> None:
    model = make(Residual).train()
    before = model.stem.normalisation.running_mean.clone()
    prepared = prepare_qat_fx(model, QAT, example_inputs=(images()[0],))
    assert prepared.training
    assert model.training
    assert torch.equal(model.stem.normalisation.running_mean, before)


def test_prepare_qat_fx_calib_and_qat_from_one_model_are_independent() -> None:
    model = make(Residual)
    calib = fx(model, images(), default_calib_8bit_fake_quant_qconfig)
    qat = prepare_qat_fx(model.train(), QAT)
    qat.load_state_dict(calib.state_dict())
    before = calib.state_dict()["quant.activation_post_process.scale"].clone()
    qat(images()[0] * 100)
    assert torch.equal(calib.state_dict()["quant.activation_post_process.scale"], before)


def test_prepare_qat_fx_not_a_module_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected an nn.Module, got str"):
        prepare_qat_fx("model", QAT)  # type: ignore[arg-type]


def test_prepare_qat_fx_unknown_qconfig_key_is_refused_before_anything() -> None:
    with pytest.raises(ConfigError, match="unknown keys"):
        prepare_qat_fx(make(Residual), {"global": None})


def test_prepare_of_a_model_on_another_device_puts_every_fake_quant_there() -> None:
    model = make(WithFunctional).to("meta")
    prepared = prepare_qat_fx(model, QAT)
    assert {buffer.device.type for _, fq in named_fake_quants(prepared) for buffer in fq.buffers()} == {"meta"}
