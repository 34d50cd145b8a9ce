from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import NotCalibratedError
from profiler.quant import (
    DeQuantStub,
    QTensor,
    QuantStub,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    prepare_qat_fx,
)
from profiler.quant.affine import qinfo
from profiler.quant.deploy.guards import integer_modules, require_converted
from profiler.quant.ops.embedding import FakeQuantEmbedding, IntegerEmbedding
from profiler.quant.swap import fake_quant_form
from tests.quant.integer_reference import INT8, INT16
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import HIGH_PRECISION, QCONFIGS, codes, on_grid, quantized
from tests.quant.stages import FRONT_ENDS, calibrate

INDICES = torch.tensor([[0, 3, 9], [1, 1, 5]])
RANGES = {"qint8": (INT8, 127.5), "qint16": (INT16, 32767.5)}


def table(**kwargs: Any) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(10, 6, **kwargs).eval()


def forms(module: nn.Embedding, dtype: str = "qint8") -> tuple[Any, Any]:
    fake: Any = fake_quant_form(module, QCONFIGS[dtype]).eval()
    fake(INDICES)
    return fake, fake.to_integer()


@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_embedding_forms_equal_the_quantized_table(dtype: str) -> None:
    module = table(padding_idx=3)
    fake, integer = forms(module, dtype)
    weight = module.weight.detach().numpy()
    code_range, half = RANGES[dtype]
    scale = np.float32(np.abs(weight).max() / np.float32(half))
    expected = np.clip(np.rint(weight * (np.float32(1) / scale)), *code_range)[INDICES.numpy()]
    y, y_fq = integer(INDICES), fake(INDICES)
    for result in (y, y_fq):
        assert isinstance(result, QTensor)
        assert (result.qdtype, float(result.scale)) == (dtype, float(scale))
        np.testing.assert_array_equal(result.int_repr().numpy(), expected)
    assert bool((y.plain[0, 1] == 0).all())


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (4,), (2, 3, 4)])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_embedding_index_shapes_and_dtypes(shape: tuple[int, ...], kind: torch.dtype) -> None:
    _, integer = forms(table())
    indices = torch.randint(0, 10, shape).to(kind)
    y = integer(indices)
    assert isinstance(y, QTensor)
    assert tuple(y.shape) == (*shape, 6)
    assert torch.equal(y.plain.reshape(-1, 6), integer.weight[indices.reshape(-1).long()])


def test_embedding_all_zero_table_has_the_floor_scale() -> None:
    module = table()
    nn.init.zeros_(module.weight)
    _, integer = forms(module)
    assert float(integer.out_scale) == 2.0**-23
    assert not bool(integer(INDICES).plain.any())


def test_embedding_gradient_reaches_the_rows_that_were_read_but_not_the_padding() -> None:
    fake: Any = fake_quant_form(table(padding_idx=3).train(), QCONFIGS["qint8"])
    fake(INDICES).dequantize().sum().backward()
    grad = fake.weight.grad
    assert torch.equal(grad[1], torch.full((6,), 2.0))
    assert not bool(grad[3].any())
    assert not bool(grad[2].any())


def test_embedding_max_norm_and_high_precision_stay_float() -> None:
    renormed = table(max_norm=1.0)
    assert fake_quant_form(renormed, QCONFIGS["qint8"]) is renormed
    module = table()
    assert fake_quant_form(module, HIGH_PRECISION) is module


def test_embedding_table_without_calibration_makes_its_scale_at_convert() -> None:
    module = table()
    fake: Any = fake_quant_form(module, QCONFIGS["qint8"])
    assert float(fake.to_integer().out_scale) == pytest.approx(float(module.weight.abs().max().detach()) / 127.5)


@pytest.mark.parametrize("form", [quantized, on_grid])
def test_embedding_function_on_a_quantized_table_keeps_its_scale(form: Any) -> None:
    x_q = codes((10, 6))
    for y in (F.embedding(INDICES, form(x_q, 0.25)), F.embedding(INDICES, weight=form(x_q, 0.25), padding_idx=1)):
        assert isinstance(y, QTensor)
        assert torch.equal(y.int_repr(), x_q[INDICES])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(10, 6), nn.Parameter(torch.randn(3, 6) / 4)
        self.linear = nn.Linear(6, 4)

    def forward(self, indices: Tensor) -> Any:
        return self.linear(self.embedding(indices) + self.position)


class StubbedTokens(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.quant_position, self.dequant = QuantStub(), QuantStub(), DeQuantStub()

    def forward(self, indices: Tensor) -> Any:
        return self.dequant(self.linear(self.quant(self.embedding(indices)) + self.quant_position(self.position)))


def test_embedding_fx_without_stubs_is_quantized_from_the_indices_on() -> None:
    torch.manual_seed(0)
    model = Tokens().eval()
    prepared: Any = prepare_qat_fx(model, {"": default_calib_8bit_fake_quant_qconfig})
    assert isinstance(prepared.embedding, FakeQuantEmbedding)
    assert [e.actual for e in prepared.quant_effects if e.op == "embedding"] == ["qint8"]
    calibrate(prepared, [INDICES])
    converted: Any = convert_fx(prepared)
    assert isinstance(converted.embedding, IntegerEmbedding)
    y, y_fq, y_q = model(INDICES), prepared(INDICES), converted(INDICES)
    step = float(y.detach().abs().max()) / 127
    assert float((y - y_fq).detach().abs().max()) < 4 * step
    assert float((y_fq - y_q).detach().abs().max()) < 1.01 * step
    assert_equals_onnx(converted, INDICES)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_embedding_in_front_of_a_stub_converts_in_both_front_ends(front_end: str) -> None:
    prepare, convert = FRONT_ENDS[front_end]
    torch.manual_seed(0)
    model = StubbedTokens().eval()
    prepared = prepare(model, [INDICES])
    y, y_fq, y_q = model(INDICES), prepared(INDICES), convert(prepared)(INDICES)
    step = float(y.detach().abs().max()) / 127
    assert float((y - y_fq).detach().abs().max()) < 4 * step
    assert float((y_fq - y_q).detach().abs().max()) < 1.01 * step


class TableAlone(nn.Module):
    """Nothing but a table is quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dequant = nn.Embedding(10, 6), DeQuantStub()

    def forward(self, indices: Tensor) -> Any:
        return self.dequant(self.embedding(indices))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_embedding_alone_is_a_converted_model_whose_scale_is_checked(front_end: str) -> None:
    prepare, convert = FRONT_ENDS[front_end]
    converted: Any = convert(prepare(TableAlone().eval(), [INDICES]))
    assert converted.embedding.out_info == qinfo("qint8")
    assert list(integer_modules(converted)) == ["embedding"]
    assert_equals_onnx(converted, INDICES)
    converted.embedding.out_scale.zero_()
    with pytest.raises(NotCalibratedError, match=r"embedding has scale 0\.0"):
        require_converted(converted, "export")


def test_embedding_max_norm_reason_is_told() -> None:
    model = Tokens().eval()
    model.embedding.max_norm = 1.0
    prepared: Any = prepare_qat_fx(model, {"": default_qat_8bit_fake_quant_qconfig})
    assert any("max_norm" in e.reason for e in prepared.quant_effects if e.op == "embedding")
