from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant import QTensor
from tests.quant.op_forms import codes, on_grid, quantized

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
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "module_flatten": nn.Flatten(),
    "module_identity": nn.Identity(),
    "module_zero_pad": nn.ZeroPad2d(1),
    "module_unflatten": nn.Unflatten(1, (2, 2)),
}
PARTS: dict[str, Transform] = {
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


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_shape_pad_mode_moves_codes(mode: str, dtype: str) -> None:
    x_q = codes(SHAPE, dtype=dtype)
    y = F.pad(quantized(x_q, 0.3, dtype), (1, 2, 2, 1), mode=mode)
    expected = F.pad(x_q.double(), (1, 2, 2, 1), mode=mode).to(x_q.dtype)
    assert isinstance(y, QTensor)
    assert torch.equal(y.plain, expected)


@pytest.mark.parametrize("pad", [lambda x: F.pad(x, (1, 1), "constant", 1.0), lambda x: F.pad(x, (1, 1), value=-2.0)])
def test_shape_pad_with_a_value_is_refused(pad: Transform) -> None:
    with pytest.raises(UnsupportedOpError, match=r"pad with value -?\d.*test_shape.py"):
        pad(quantized(codes(SHAPE), 0.3))


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
