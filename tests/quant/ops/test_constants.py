"""Float constants as operands: quantized inside the op that reads them, in the eager front end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant import (
    FloatFunctional,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    prepare_qat,
)
from profiler.quant.fake_quant import FakeQuantize
from tests.models import Stubbed
from tests.quant.ops.arithmetic_cases import batches, network
from tests.quant.stages import calibrate, eager


def scale_of(values: Tensor, half_range: float = 127.5) -> float:
    return float(values.detach().abs().max() / half_range)


class Functional(Stubbed):
    def __init__(self) -> None:
        super().__init__()
        self.ff, self.gain = FloatFunctional(), nn.Parameter(torch.rand(3, 1, 1) + 0.5)

    def body(self, x: Any) -> Any:
        return self.ff.mul(x, self.gain)


def test_constant_parameter_gets_a_min_max_scale_of_its_own() -> None:
    prepared = eager(network(lambda m, x: x * m.gain), batches())
    constant = prepared._generated_mul_0.constant_1
    assert isinstance(constant, FakeQuantize)
    assert float(constant.scale) == pytest.approx(scale_of(prepared.gain))
    converted = convert(prepared)
    assert float(converted._generated_mul_0.constant_1_scale) == float(constant.scale)
    assert not [m for m in converted.modules() if isinstance(m, FakeQuantize)]


def test_constant_has_the_dtype_of_the_output() -> None:
    prepared = eager(network(lambda m, x: m.shift + x), batches(), default_calib_16bit_fake_quant_qconfig)
    constant = prepared._generated_add_0.constant_0
    assert constant.dtype == "qint16"
    assert float(constant.scale) == pytest.approx(scale_of(prepared.shift, 32767.5))


@pytest.mark.parametrize("no_grad", [True, False])
def test_constant_view_of_a_parameter_or_buffer_is_one(no_grad: bool) -> None:
    def body(m: Any, x: Any) -> Any:
        return x * m.gain.view(1, 4, 1, 1)[:, :4] + m.shift.squeeze(0)

    model = network(body)
    prepared = eager(model, batches())
    with torch.set_grad_enabled(not no_grad):
        y = prepared(batches()[0])
    assert torch.allclose(y, model(batches()[0]), atol=0.1)
    assert torch.allclose(convert(prepared)(batches()[0]), y, atol=0.05)


def test_constant_follows_the_parameter_in_training_and_passes_its_gradient() -> None:
    model: Any = network(lambda m, x: x * m.gain)
    model.qconfig = default_qat_8bit_fake_quant_qconfig
    qat: Any = prepare_qat(model.train())
    qat(batches()[0]).square().sum().backward()
    assert float(qat.gain.grad.abs().sum()) > 0
    with torch.no_grad():
        qat.gain.mul_(3)
    qat(batches()[0])
    assert float(qat._generated_mul_0.constant_1.scale) == pytest.approx(scale_of(qat.gain))


def test_constant_scale_is_loaded_into_a_fresh_model_which_converts() -> None:
    prepared = eager(network(lambda m, x: x * m.gain - m.shift), batches())
    fresh: Any = network(lambda m, x: x * m.gain - m.shift)
    fresh.qconfig = default_calib_8bit_fake_quant_qconfig
    fresh = prepare_qat(fresh).eval()
    fresh.load_state_dict(copy.deepcopy(prepared.state_dict()))
    assert torch.equal(convert(fresh)(batches()[0]), convert(prepared)(batches()[0]))


def test_constant_of_a_float_functional_is_quantized_and_loaded() -> None:
    model = Functional().eval()
    prepared = eager(model, batches())
    assert float(prepared.ff.constant_1.scale) == pytest.approx(scale_of(model.gain))
    fresh: Any = Functional().eval()
    fresh.qconfig = default_calib_8bit_fake_quant_qconfig
    fresh = prepare_qat(fresh).eval()
    fresh.load_state_dict(prepared.state_dict())
    assert torch.equal(convert(fresh)(batches()[0]), convert(prepared)(batches()[0]))


def test_constant_number_needs_no_scale() -> None:
    prepared = eager(network(lambda m, x: x * m.temperature), batches())
    assert set(dict(prepared._generated_mul_0.named_children())) == {"activation_post_process"}


def test_float_activation_as_operand_is_no_constant() -> None:
    model: Any = network(lambda m, x: x * torch.ones(6))
    model.qconfig = default_calib_8bit_fake_quant_qconfig
    with pytest.raises(UnsupportedOpError, match=r"partly float, called at .*test_constants.py.*QuantStub"):
        calibrate(prepare_qat(model), batches())
