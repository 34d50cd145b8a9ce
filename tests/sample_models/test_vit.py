"""The transformer sample: accurate in float, within a point with int16 before LayerNorm and softmax, equal in ONNX."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from profiler.quant import QTensor
from profiler.quant.states import named_fake_quants
from profiler.quant.swap import EFFECTS_ATTRIBUTE
from sample_models import SAMPLES, digits, vit
from sample_models.flows import FLOWS
from sample_models.train_vit import train, train_qat
from sample_models.training import WEIGHTS_DIR, TrainingPlan
from sample_models.vit_network import FunctionAttention, ModuleAttention, OwnAttention, VisionTransformer
from tests.quant.onnx_check import assert_equals_onnx
from tests.sample_models.quantizing import int8_stages, logits_of, sqnr_db


@pytest.fixture(scope="module")
def float_model() -> nn.Module:
    return vit.load()


@pytest.fixture(scope="module", params=sorted(FLOWS))
def stages(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    return int8_stages(vit.flow_sample(), request.param)


def test_float_accuracy_is_at_least_95_percent(float_model: nn.Module) -> None:
    assert vit.evaluate(float_model) >= 95.0


def test_weights_are_smaller_than_1_mb() -> None:
    assert (WEIGHTS_DIR / "vit.safetensors").stat().st_size < 1_000_000


def test_sample_is_listed() -> None:
    assert SAMPLES["vit"] == "sample_models.vit"


def test_the_three_spellings_of_attention_compute_the_same() -> None:
    own, function, module = OwnAttention(64, 4), FunctionAttention(64, 4), ModuleAttention(64, 4)
    function.load_state_dict(own.state_dict())
    module.mha.in_proj_weight.data, module.mha.in_proj_bias.data = own.qkv.weight.data, own.qkv.bias.data
    module.mha.out_proj.load_state_dict(own.proj.state_dict())
    x = torch.randn(2, 16, 64)

    for other in (function, module):
        torch.testing.assert_close(other(x), own(x), rtol=0, atol=1e-5)


def test_each_spelling_is_in_the_network() -> None:
    model = VisionTransformer()

    assert {type(m) for m in model.modules()} >= {OwnAttention, FunctionAttention, ModuleAttention}


def test_wide_names_are_modules(float_model: nn.Module) -> None:
    for name in vit.WIDE:
        float_model.get_submodule(name)


def test_int16_before_norm_and_softmax_loses_at_most_1_point(
    stages: tuple[nn.Module, nn.Module], float_model: nn.Module
) -> None:
    accuracy, reference = vit.evaluate(float_model), logits_of(float_model, digits.normalise)

    for stage in stages:
        assert accuracy - vit.evaluate(stage) <= 1.0
        assert sqnr_db(reference=reference, test=logits_of(stage, digits.normalise)) > 20.0


def test_everything_runs_on_integers(stages: tuple[nn.Module, nn.Module]) -> None:
    calib_model, quantized_model = stages

    assert [e for e in getattr(calib_model, EFFECTS_ATTRIBUTE) if "float" in e.reason] == []
    assert not any(True for _ in named_fake_quants(quantized_model))


def test_what_norm_and_softmax_read_is_int16(stages: tuple[nn.Module, nn.Module]) -> None:
    read: dict[str, str] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, args: tuple[object, ...]) -> None:
            assert isinstance(args[0], QTensor)
            read[name] = args[0].qdtype

        return hook

    handles = []
    for name, module in stages[1].named_modules():
        if name.endswith((".norm1", ".norm2", ".softmax")) or name == "norm":
            handles.append(module.register_forward_pre_hook(keep(name)))  # type: ignore[arg-type]
    stages[1](digits.normalise(digits.test_set()[0][:2]))
    for handle in handles:
        handle.remove()

    assert len(read) >= 2 * 3 + 1 + 2
    assert set(read.values()) == {"qint16"}


def test_every_integer_equals_onnx_runtime(stages: tuple[nn.Module, nn.Module]) -> None:
    assert_equals_onnx(stages[1].eval(), vit.calibration_batches()[0][:2], num_codes=25)


def test_all_int8_still_classifies(float_model: nn.Module) -> None:
    calib_model, quantized_model = int8_stages(vit.flow_sample(wide=()), "fx")

    for stage in (calib_model, quantized_model):
        assert vit.evaluate(float_model) - vit.evaluate(stage) <= 5.0


def test_training_is_seeded_and_learns() -> None:
    plan = TrainingPlan(epochs=1, learning_rate=1e-3, optimizer="adamw")
    first, second = train(plan, num_images=64), train(plan, num_images=64)

    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.heavy
def test_qat_loses_at_most_1_point(float_model: nn.Module) -> None:
    from profiler.quant import default_qat_8bit_fake_quant_qconfig, default_qat_16bit_fake_quant_qconfig, prepare_qat_fx

    wide = dict.fromkeys(vit.WIDE, default_qat_16bit_fake_quant_qconfig)
    qat_model = prepare_qat_fx(vit.load(), {"": default_qat_8bit_fake_quant_qconfig, "module_name": wide})
    train_qat(qat_model, epochs=1)

    assert vit.evaluate(float_model) - vit.evaluate(qat_model) <= 1.0
