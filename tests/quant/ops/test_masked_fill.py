from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from profiler.quant import QTensor
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import RANGES, check_in_networks


@pytest.mark.parametrize("make", [quantized, on_grid])
@pytest.mark.parametrize(
    ("value", "dtype", "code", "out"),
    [
        (0, "qint8", 0, "qint8"),
        (-1.26, "qint8", -13, "qint8"),
        (torch.tensor(0.3), "qint8", 3, "qint8"),
        (-12.8, "qint8", -128, "qint8"),
        (20.0, "qint8", 200, "qint16"),
        (-1e9, "qint8", -32768, "qint16"),
        (float("-inf"), "qint8", -32768, "qint16"),
        (float("inf"), "qint8", 32767, "qint16"),
        (-1e9, "qint16", -32768, "qint16"),
        (1.0, "qint16", 10, "qint16"),
    ],
)
def test_masked_fill_writes_the_number_at_the_scale_of_the_input(
    make: Any, value: Any, dtype: str, code: int, out: str
) -> None:
    x_q = codes((4, 5), 0, dtype)
    mask = torch.tensor([True, False, True, False, False])
    y = make(x_q, 0.1, dtype).masked_fill(mask, value)
    assert isinstance(y, QTensor)
    assert (y.qdtype, float(y.scale)) == (out, float(torch.tensor(0.1)))
    expected = torch.where(mask, torch.tensor(code), x_q.long())
    assert torch.equal(y.int_repr().long(), expected)
    if make is on_grid:
        assert torch.equal(y.plain, expected * torch.tensor(0.1))


@pytest.mark.parametrize("make", [quantized, on_grid])
@pytest.mark.parametrize("value", [0.5, -1e9])
def test_masked_fill_in_place_changes_the_tensor_it_was_called_on(make: Any, value: float) -> None:
    x_q = codes((4, 5))
    x, expected = make(x_q, 0.1), make(x_q, 0.1).masked_fill(x_q > 0, value)
    result = x.masked_fill_(x_q > 0, value)
    for y in (x, result):
        assert y.qdtype == expected.qdtype
        assert torch.equal(y.int_repr(), expected.int_repr())


def test_masked_fill_of_a_float_tensor_by_a_quantized_mask_stays_float() -> None:
    y = torch.ones(4).masked_fill(quantized(codes((4,)), 0.1) > 0, 2.0)
    assert type(y) is torch.Tensor


@pytest.mark.parametrize("dtype", RANGES)
def test_masked_fill_passes_the_gradient_where_the_mask_is_false(dtype: str) -> None:
    leaf = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, False], [False, True, False]])
    QTensor.wrap(leaf, torch.tensor(0.1), dtype).masked_fill(mask, -1e9).plain.sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, (~mask).float())


def test_masked_fill_of_causal_scores_hides_the_future() -> None:
    """Scores near 0 on a scale that reaches 4: a mask that saturated at -4 would let the future through."""
    x_q, mask = codes((1, 64, 64), 3) // 100, torch.ones(64, 64).triu(1).bool()
    scores = quantized(x_q, 4 / 127.5).masked_fill(mask, float("-inf"))
    attention = F.softmax(scores.dequantize(), -1)
    assert float(attention[:, mask].max()) < 1e-20


def _in_place(module: Any, x: Any) -> Any:
    y = x + 1
    y.masked_fill_(module.keep, 0.5)
    return y


def _in_place_mask(module: Any, x: Any) -> Any:
    y = x + 1
    y.masked_fill_(module.keep, float("-inf"))
    return F.softmax(y, 1)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x.masked_fill(m.keep, 0.5),
        lambda m, x: F.softmax(x.masked_fill(m.keep, float("-inf")), 1),
        lambda m, x: torch.masked_fill(x, m.keep, -1e9).relu() + x,
        _in_place,
        _in_place_mask,
    ],
)
def test_masked_fill_in_networks(body: Any) -> None:
    check_in_networks(body)
