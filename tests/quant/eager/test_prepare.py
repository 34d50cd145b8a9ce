from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError, UnsupportedOpError
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    QuantStub,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_16bit_fake_quant_qconfig,
    fuse_modules,
    get_default_qat_out_qconfig,
    get_default_qat_qconfig,
    prepare_qat,
    set_fake_quantize,
)
from profiler.quant.states import named_fake_quants
from tests.models import (
    EAGER,
    CalledTwice,
    ConvBnRelu,
    DictOutput,
    FloatPart,
    FrozenNorm,
    InPlaceRelu,
    IntegerInput,
    Residual,
    SharedModule,
    Stubbed,
    images,
    make,
)
from tests.quant.stages import calibrate, eager


def with_qconfig(model: Any, qconfig: Any = default_qat_8bit_fake_quant_qconfig) -> Any:
    model.qconfig = qconfig
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    types = {
        name: (type(m), m.training, len(m._forward_hooks), sorted(m.__dict__)) for name, m in model.named_modules()
    }
    return {"state": state, "types": types, "ids": {n: id(m) for n, m in model.named_modules()}}


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert (after["types"], after["ids"]) == (before["types"], before["ids"])
    assert all(torch.equal(after["state"][k], v) for k, v in before["state"].items())


@pytest.mark.parametrize("cls", EAGER)
def test_prepare_qat_float_model_is_untouched_bit_for_bit(cls: type[nn.Module]) -> None:
    model = with_qconfig(make(cls))
    before = snapshot(model)
    x = images()[0]
    expected = model(x)
    calibrate(prepare_qat(model), images())
    assert_same(model, before)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("cls", EAGER)
def test_prepare_qat_shares_no_tensor_with_the_float_model(cls: type[nn.Module]) -> None:
    model = with_qconfig(make(cls))
    prepared = prepare_qat(model)
    own = {t.data_ptr() for t in [*model.parameters(), *model.buffers()] if t.numel()}
    assert not own & {t.data_ptr() for t in [*prepared.parameters(), *prepared.buffers()] if t.numel()}


@pytest.mark.parametrize("cls", EAGER)
def test_prepare_qat_validated_output_is_near_float(cls: type[nn.Module]) -> None:
    model = make(cls)
    y, expected = eager(model, images())(images()[0]), model(images()[0])
    share = 0.4 if cls is CalledTwice else 0.1  # one scale for two calls whose ranges differ clips the wider one
    assert float((y - expected).detach().abs().max()) < share * float(expected.detach().abs().max())


@pytest.mark.parametrize("cls", EAGER)
def test_prepare_qat_without_rounding_equals_float(cls: type[nn.Module]) -> None:
    prepared = eager(make(cls), images())
    set_fake_quantize(prepared, FakeQuantState._FLOAT)
    torch.testing.assert_close(prepared(images()[0]), make(cls)(images()[0]), rtol=1e-4, atol=1e-5)


def test_prepare_qat_two_prepares_from_one_model_are_independent() -> None:
    model = make(Residual)
    calib = eager(model, images(), default_calib_8bit_fake_quant_qconfig)
    qat = prepare_qat(with_qconfig(model))
    qat.load_state_dict(calib.state_dict())
    qat.train()
    qat(images()[0]).sum().backward()
    with torch.no_grad():
        for parameter in qat.parameters():
            parameter.add_(1.0)
    assert torch.equal(model.stem.convolution.weight, calib.stem.convolution.weight)


def test_prepare_qat_child_inherits_own_wins() -> None:
    model = make(Residual)
    model.block.qconfig = default_qat_16bit_fake_quant_qconfig()
    model.head.qconfig = get_default_qat_out_qconfig()
    prepared = prepare_qat(with_qconfig(model, get_default_qat_qconfig()))
    assert prepared.stem.convolution.activation_post_process.dtype == "qint8"
    assert prepared.block.convolution.activation_post_process.dtype == "qint16"
    assert prepared.head.activation_post_process is None
    assert prepared.head.weight_fake_quant.dtype == "qint8"


def test_prepare_qat_none_keeps_class_and_floats_unchanged() -> None:
    model = make(FloatPart)
    prepared = eager(model, images())
    assert type(prepared.post) is nn.Conv2d
    assert torch.equal(prepared.post.weight, model.post.weight)
    effect = next(e for e in prepared.quant_effects if e.op == "post")
    assert (effect.requested, effect.actual) == ("None", "torch.float32")


def test_prepare_qat_scale_of_the_stub_is_fixed() -> None:
    model = Residual()
    model.quant = QuantStub(scale=1 / 128)
    prepared = eager(model.eval(), images())
    assert float(prepared.quant.activation_post_process.scale) == 1 / 128


def test_prepare_qat_torchs_own_stubs_are_accepted() -> None:
    stubs = pytest.importorskip("torch.ao.quantization.stubs")
    model = make(Residual)
    model.quant, model.dequant = stubs.QuantStub(), stubs.DeQuantStub()
    expected = model(images()[0])
    y = eager(model, images())(images()[0])
    assert type(y) is Tensor
    assert float((y - expected).detach().abs().max()) < 0.1 * float(expected.detach().abs().max())


def test_prepare_qat_functions_get_generated_modules_in_the_calling_module() -> None:
    prepared = eager(make(Residual), images())
    assert {"_generated_add_0", "_generated_cat_0"} <= set(dict(prepared.named_children()))
    relu6 = eager(make(InPlaceRelu), images())
    assert "_generated_relu6_0" in dict(relu6.named_children())
    assert "_generated_relu_0" not in dict(relu6.named_children())  # keeps its input's scale: nothing to observe


def test_prepare_qat_module_called_twice_has_one_set_of_generated_modules() -> None:
    prepared = eager(make(CalledTwice), images())
    assert set(dict(prepared.inner.named_children())) == {"conv", "_generated_add_0", "_generated_add_1"}
    assert "_generated_add_1" not in dict(prepared.named_children())


def test_prepare_qat_second_forward_makes_no_new_modules() -> None:
    prepared = eager(make(Residual), images())
    names = [n for n, _ in prepared.named_modules()]
    prepared(images()[1])
    assert [n for n, _ in prepared.named_modules()] == names


def test_prepare_qat_shared_module_is_one_module_with_one_scale() -> None:
    prepared = eager(make(SharedModule), images())
    assert prepared.first is prepared.alias
    assert len([n for n, _ in named_fake_quants(prepared) if "first" in n]) == 2


def test_prepare_qat_overridden_train_keeps_working() -> None:
    prepared = eager(make(FrozenNorm), images())
    prepared.train()
    assert prepared.conv.training
    assert not prepared.bn.training
    before = prepared.bn.activation_post_process.scale.clone()
    prepared(images()[0] * 50)
    assert torch.equal(prepared.bn.activation_post_process.scale, before)


def test_prepare_qat_frozen_module_flag_is_kept() -> None:
    model = with_qconfig(make(Residual)).train()
    model.stem.normalisation.eval()
    prepared = prepare_qat(model)
    assert not prepared.stem.normalisation.training
    assert prepared.stem.convolution.training


def test_prepare_qat_dict_output_keyword_input_and_uncalled_module() -> None:
    batches = [{"image": x, "gain": 2.0} for x in images()]
    model = make(DictOutput)
    prepared = eager(model, batches)
    result, expected = prepared(image=images()[0], gain=2.0), model(image=images()[0], gain=2.0)
    assert set(result) == {"y", "parts", "nothing"}
    assert result["parts"][1] == 3
    assert type(result["y"]) is Tensor
    assert torch.allclose(result["y"], expected["y"], atol=0.05)
    assert torch.allclose(result["parts"][0], expected["parts"][0], atol=0.1)


def test_prepare_qat_integer_input_goes_through_the_embedding() -> None:
    model = make(IntegerInput)
    tokens = [torch.randint(0, 10, (2, 5)) for _ in range(3)]
    assert torch.allclose(eager(model, tokens)(tokens[0]), model(tokens[0]), atol=0.1)


def test_prepare_qat_empty_batch_passes() -> None:
    prepared = eager(make(Residual), images())
    assert prepared(torch.zeros(0, 3, 8, 8)).shape == (0, 5)


def test_prepare_qat_function_under_none_names_the_place() -> None:
    class Inner(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + x

    class Outer(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()
            self.inner.qconfig = None

        def body(self, x: Any) -> Any:
            return self.inner(x)

    with pytest.raises(UnsupportedOpError, match=r"add in inner, called at .*test_prepare.py:\d+.*qconfig = None"):
        prepare_qat(with_qconfig(Outer()))(images()[0])


def test_prepare_qat_mixed_float_operand_is_an_error_before_convert() -> None:
    class Mixed(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.quant(x) + x)

    with pytest.raises(
        UnsupportedOpError, match=r"add: operands are partly float, called at .*test_prepare.py:\d+.*QuantStub"
    ):
        prepare_qat(with_qconfig(Mixed()))(images()[0])


def test_prepare_qat_custom_mapping_makes_the_module() -> None:
    class Mine(nn.Conv2d):
        pass

    def build(module: nn.Module, qconfig: Any) -> nn.Module:
        return Mine(3, 4, 3)

    prepared = prepare_qat(with_qconfig(make(Residual)), mapping={nn.Linear: build})
    assert type(prepared.head) is Mine


@pytest.mark.parametrize("bad", [None, "model", 3])
def test_prepare_qat_not_a_module_is_refused(bad: Any) -> None:
    with pytest.raises(ModelError, match=r"expected an nn.Module"):
        prepare_qat(bad)


def test_prepare_qat_uncopyable_model_says_why() -> None:
    model = make(Residual)
    model.kept = (i for i in range(3))
    with pytest.raises(ModelError, match=r"Residual cannot be deep-copied.*generator.*remove the attribute"):
        prepare_qat(with_qconfig(model))


def test_prepare_qat_model_that_keeps_computed_tensors_is_copied() -> None:
    model = make(Residual)
    model.kept = [torch.ones(2, requires_grad=True) * 2]
    prepared = prepare_qat(with_qconfig(model))
    assert torch.equal(prepared.kept[0], model.kept[0])
    assert not prepared.kept[0].requires_grad


def test_prepare_qat_wrong_qconfig_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="qconfig is str"):
        prepare_qat(with_qconfig(make(Residual), "int8"))


def test_prepare_qat_inplace_changes_the_model_itself() -> None:
    model = with_qconfig(make(Residual))
    assert prepare_qat(model, inplace=True) is model
    assert list(named_fake_quants(model))


def test_prepare_qat_fused_conv_repr_and_high_precision_form() -> None:
    model = make(Residual)
    fuse_modules(model.stem, list(ConvBnRelu.fuse_names), inplace=True)
    model.head.qconfig = get_default_qat_out_qconfig()
    prepared = prepare_qat(with_qconfig(model))
    text = repr(prepared.stem)
    assert "ConvReLU2d(" in text
    assert "(weight_fake_quant): FakeQuantize(" in text
    assert "(activation_post_process): FakeQuantize(" in text
    own = [line for line in repr(prepared.head).splitlines() if line.startswith("  (activation_post_process)")]
    assert own in ([], ["  (activation_post_process): None"])


def test_prepare_qat_output_is_a_plain_tensor() -> None:
    assert type(eager(make(Residual), images())(images()[0])) is Tensor


def test_prepare_qat_order_keeping_functions_keep_the_scale() -> None:
    class Keeping(Stubbed):
        def body(self, x: Any) -> Any:
            y = F.max_pool2d(F.relu(x), 2).permute(0, 2, 3, 1)[:, 1:].reshape(-1, 3)
            assert float(y.q_scale()) == float(x.q_scale())
            return y

    prepared = eager(Keeping().eval(), images())
    assert not any("_generated_" in n for n, _ in prepared.named_modules())


def test_prepare_qat_model_can_be_deepcopied_and_the_copy_is_independent() -> None:
    prepared = eager(make(Residual), images())
    other = copy.deepcopy(prepared)
    x = images()[0]
    assert torch.equal(other(x), prepared(x))
    set_fake_quantize(other, FakeQuantState.CALIBRATION)
    other(x * 10)
    other.eval()
    assert float(other.quant.activation_post_process.scale) > float(prepared.quant.activation_post_process.scale)


def test_dequant_stub_is_kept_as_one_module() -> None:
    prepared = prepare_qat(with_qconfig(make(Residual)))
    assert type(prepared.dequant) is DeQuantStub
