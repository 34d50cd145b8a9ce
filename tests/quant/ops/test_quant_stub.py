from __future__ import annotations

import numpy as np
import pytest
import torch

from profiler.errors import ConfigError, UnsupportedOpError
from profiler.quant import QTensor, QuantStub, default_qat_8bit_fake_quant_qconfig, default_qat_16bit_fake_quant_qconfig
from profiler.quant.swap import fake_quant_form
from tests.quant.op_forms import assert_codes_equal, forms_of

X = torch.linspace(-1.3, 1.3, 2601)


def test_quant_stub_float_form_passes_its_input_on() -> None:
    assert QuantStub(0.5)(X) is X


def test_quant_stub_given_scale_makes_multiples_and_ignores_data() -> None:
    fake = fake_quant_form(QuantStub(scale=1 / 128), default_qat_8bit_fake_quant_qconfig)
    y = fake(X.clamp(-1, 1) * 100)
    y = fake(X.clamp(-1, 1))
    assert isinstance(y, QTensor)
    assert torch.equal(y.plain * 128, (y.plain * 128).round())
    assert float(y.scale) == 1 / 128
    assert torch.equal(y.int_repr(), (X.clamp(-1, 1) * 128).round().clamp(-128, 127).to(torch.int8))


def test_quant_stub_given_scale_is_calibrated_and_keeps_a_16bit_dtype() -> None:
    fake = fake_quant_form(QuantStub(scale=0.001), default_qat_16bit_fake_quant_qconfig)
    assert fake.activation_post_process.is_calibrated
    assert fake(X).qdtype == "qint16"


@pytest.mark.parametrize(("dtype", "code_range"), [("qint8", (-128, 127)), ("qint16", (-32768, 32767))])
def test_quant_stub_integer_form_equals_formula(dtype: str, code_range: tuple[int, int]) -> None:
    scale = 0.0091 if dtype == "qint8" else 0.00003
    fake, integer = forms_of(QuantStub(), scale, dtype)
    inverse = np.float32(1) / np.float32(scale)
    expected = np.clip(np.rint(X.numpy() * inverse), *code_range).astype(np.int64)
    y = integer(X)
    assert_codes_equal(y, expected, dtype)
    assert torch.equal(fake(X).int_repr(), y.int_repr())


@pytest.mark.parametrize("kwargs", [{"scale": 0.0}, {"scale": -1.0}, {"scale": 1.0, "zero_point": 3}])
def test_quant_stub_bad_arguments_are_refused(kwargs: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected scale > 0, zero_point 0"):
        QuantStub(**kwargs)  # type: ignore[arg-type]


def test_quant_stub_integer_tensor_is_refused() -> None:
    fake, _ = forms_of(QuantStub(), 0.1)
    with pytest.raises(UnsupportedOpError, match=r"torch.int64; only float tensors"):
        fake(torch.arange(3))


def test_quant_stub_quantized_input_passes() -> None:
    fake, integer = forms_of(QuantStub(), 0.1)
    for form in (fake, integer):
        x = form(X)
        assert form(x) is x


def test_quant_stub_empty_batch_passes_uncalibrated() -> None:
    fake = fake_quant_form(QuantStub(), default_qat_8bit_fake_quant_qconfig)
    assert fake(torch.zeros(0, 3)).shape == (0, 3)
