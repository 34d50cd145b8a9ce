from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant import QTensor
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.scale_keeping_cases import Call, assert_front_ends_run

Transform = Callable[[Any], Any]
SHAPE = (2, 4, 6, 6)
TRANSFORMS: dict[str, Transform] = {
    "reshape": lambda x: x.reshape(2, -1),
    "view": lambda x: x.view(8, 36),
    "view_size": lambda x: x.view(x.size(0), x.shape[1] * 36),
    "flatten": lambda x: torch.flatten(x, 1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "T": lambda x: x[0, 0].T,
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "expand": lambda x: x[:1].expand(3, -1, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "index_int": lambda x: x[0],
    "index_slice": lambda x: x[..., ::2, 1:],
    "index_mask": lambda x: x[torch.tensor([True, False])],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "contiguous": lambda x: x.transpose(1, 3).contiguous(),
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "flip": lambda x: x.flip(3),
    "roll": lambda x: torch.roll(x, 1, 2),
    "movedim": lambda x: x.movedim(1, 3),
    "moveaxis": lambda x: torch.moveaxis(x, 0, 2),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "swapdims": lambda x: x.swapdims(0, 3),
    "ravel": lambda x: x.ravel(),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "fliplr": lambda x: torch.fliplr(x),
    "flipud": lambda x: x.flipud(),
    "tile": lambda x: x.tile(1, 1, 2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "repeat_interleave_each": lambda x: x.repeat_interleave(torch.tensor([1, 3]), 0),
    "broadcast_to": lambda x: torch.broadcast_to(x[:1], (2, 4, 6, 6)),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "tril": lambda x: x.tril(1),
    "triu": lambda x: torch.triu(x),
    "mT": lambda x: x.mT,
    "adjoint": lambda x: x.adjoint(),
    "index_tensor": lambda x: x[:, torch.tensor([3, 0, 0])],
    "index_list": lambda x: x[:, [1, 2]],
    "index_none": lambda x: x[:, None, ..., 0],
    "index_pair": lambda x: x[torch.tensor([0, 1]), torch.tensor([2, 3])],
    "index_big_mask": lambda x: x[torch.arange(288).reshape(SHAPE) % 3 == 0],
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "module_flatten": nn.Flatten(),
    "module_identity": nn.Identity(),
    "module_unflatten": nn.Unflatten(1, (2, 2)),
}
PARTS: dict[str, Transform] = {
    "split_with_sizes": lambda x: x.split([1, 3], 1),
    "tensor_split": lambda x: torch.tensor_split(x, 3, 1),
    "hsplit": lambda x: x.hsplit(2),
    "split": lambda x: x.split(2, 1),
    "chunk": lambda x: torch.chunk(x, 2, 1),
    "unbind": lambda x: x.unbind(1),
    "iterate": list,
    "unpack": lambda x: (lambda first, second: (first, second))(*x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_shape_integer_form_moves_codes_and_keeps_the_scale(name: str, dtype: str) -> None:
    x_q = codes(SHAPE, dtype=dtype)
    y = TRANSFORMS[name](quantized(x_q, 0.3, dtype))
    assert isinstance(y, QTensor)
    assert (y.qdtype, y.plain.dtype) == (dtype, x_q.dtype)
    assert float(y.scale) == float(torch.tensor(0.3))
    assert torch.equal(y.plain, TRANSFORMS[name](x_q))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_shape_fake_quant_form_equals_integer_form_exactly(name: str) -> None:
    x_q = codes(SHAPE)
    y_fq, y_q = TRANSFORMS[name](on_grid(x_q, 0.3)), TRANSFORMS[name](quantized(x_q, 0.3))
    assert torch.equal(y_fq.int_repr(), y_q.int_repr())
    assert torch.equal(y_fq.dequantize(), y_q.dequantize())


@pytest.mark.parametrize("name", PARTS)
def test_shape_parts_are_quantized_each(name: str) -> None:
    x_q = codes(SHAPE)
    parts, expected = PARTS[name](quantized(x_q, 0.3)), PARTS[name](x_q)
    assert len(parts) == len(expected)
    for part, reference in zip(parts, expected, strict=True):
        assert isinstance(part, QTensor)
        assert torch.equal(part.plain, reference)


def test_shape_facts_are_plain_values() -> None:
    x = quantized(codes(SHAPE), 0.3)
    assert (x.dim(), x.numel(), tuple(x.size()), x.device.type, x.ndim, len(x)) == (4, 288, SHAPE, "cpu", 4, 2)


def test_shape_to_other_dtype_keeps_codes_and_scale() -> None:
    x_q = codes(SHAPE)
    y: Any = quantized(x_q, 0.3).to(torch.float32)
    assert isinstance(y, QTensor)
    assert torch.equal(y.plain, x_q)
    assert isinstance(on_grid(x_q, 0.3).to("cpu"), Tensor)


def test_shape_zero_batch_is_kept() -> None:
    y = torch.flatten(quantized(codes((0, 4, 2, 2)), 0.3), 1)
    assert isinstance(y, QTensor)
    assert y.shape == (0, 16)


@pytest.mark.parametrize("make", [on_grid, quantized])
@pytest.mark.parametrize("function", ["expand_as", "type_as", "reshape_as"])
def test_shape_of_a_float_tensor_like_a_quantized_one_stays_float(make: Any, function: str) -> None:
    x = make(codes(SHAPE), 0.5)
    mask = torch.full(SHAPE, 0.25)
    result = getattr(mask, function)(x)
    assert not isinstance(result, QTensor)
    assert result.dtype == torch.float32
    assert torch.equal(result, mask)


def test_type_without_argument_names_the_type() -> None:
    assert on_grid(codes(SHAPE), 0.5).type() == "torch.FloatTensor"


def test_shape_view_as_another_dtype_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match=r"view with a dtype.*test_shape\.py"):
        quantized(codes(SHAPE), 0.3).view(torch.uint8)


@pytest.mark.parametrize("form", [quantized, on_grid])
def test_setitem_brings_the_value_to_the_scale_of_the_target(form: Any) -> None:
    x_q = codes((3, 4))
    x, same, other = form(x_q.clone(), 0.5), form(codes((4,), 1), 0.5), form(codes((4,), 2), 0.125)
    x[0], x[1], x[2, 0], x[2, 1] = same, other, 1.3, 1e9
    result = x.int_repr()
    assert isinstance(x, QTensor)
    assert torch.equal(result[0], codes((4,), 1))
    assert torch.equal(result[1], (codes((4,), 2).double() / 4).round().to(torch.int8))
    assert result[2, :2].tolist() == [3, 127]
    assert torch.equal(result[2, 2:], x_q[2, 2:])


def test_setitem_with_mask_and_quantized_index_target() -> None:
    x = quantized(torch.tensor([1, 2, 3, 4], dtype=torch.int8), 0.5)
    x[torch.tensor([True, False, True, False])] = 0
    assert x.plain.tolist() == [0, 2, 0, 4]


def test_setitem_of_a_float_tensor_is_refused_with_its_line() -> None:
    x = quantized(codes((3, 4)), 0.5)
    with pytest.raises(UnsupportedOpError, match=r"float tensor is written into a QTensor at .*test_shape\.py"):
        x[0] = torch.randn(4)


def test_setitem_into_a_float_tensor_writes_real_values() -> None:
    x = torch.zeros(2, 4)
    x[0] = quantized(codes((4,)), 0.5)
    assert not isinstance(x, QTensor)
    assert torch.equal(x[0], codes((4,)).float() * 0.5)


@pytest.mark.parametrize("name", ["roll", "rot90", "tile", "index_tensor", "diagonal", "triu"])
def test_shape_ops_run_in_both_front_ends(name: str) -> None:
    assert_front_ends_run(Call(TRANSFORMS[name]), SHAPE)
