from __future__ import annotations

import copy
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant import QTensor, prepare_qat
from profiler.quant.qtensor import first_qtensor, handles, real_fact, to_float, to_plain
from tests.models import Stubbed, images, make
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.stages import FRONT_ENDS


def test_qtensor_describes_itself() -> None:
    x_q = codes((3, 4))
    for x in (quantized(x_q, 0.3), on_grid(x_q, 0.3)):
        assert float(x.q_scale()) == float(torch.tensor(0.3))
        assert int(x.q_zero_point()) == 0
        assert x.q_per_channel_axis() == -1
        assert torch.equal(x.int_repr(), x_q)
        assert type(x.int_repr()) is Tensor
        assert torch.equal(x.dequantize(), x_q.float() * torch.tensor(0.3))
        assert "qint8" in repr(x)
    assert quantized(x_q, 0.3).holds_codes
    assert not on_grid(x_q, 0.3).holds_codes


def test_qtensor_per_channel_scale_acts_along_its_axis() -> None:
    x = QTensor.wrap(torch.ones(2, 3, dtype=torch.int8), torch.tensor([0.1, 0.2, 0.3]), "qint8", 1)
    assert torch.equal(x.dequantize()[0], torch.tensor([0.1, 0.2, 0.3]))
    assert x.q_per_channel_axis() == 1


READS = {
    "item": lambda x: x[1].item(),
    "tolist": lambda x: x.tolist(),
    "int": lambda x: int(x[1]),
    "float": lambda x: float(x[1]),
    "bool": lambda x: (bool(x[1]), bool(x[3])),
    "complex": lambda x: complex(x[0]),
    "sqrt": lambda x: math.sqrt(x[1]),
    "format": lambda x: f"{x[1]:.3f}",
    "numpy": lambda x: x.numpy().tolist(),
    "array": lambda x: np.asarray(x).tolist(),
    "contains": lambda x: (5.0 in x, 20.0 in x),
    "allclose": lambda x: torch.allclose(x, torch.tensor([2.5, 5, -20, 0])),
    "equal": lambda x: torch.equal(x, torch.tensor([2.5, 5, -20, 0])),
    "unpacked": lambda x: [v.item() for v in x],
    "length": lambda x: list(range(int(x[1]))),
}


@pytest.mark.parametrize("name", READS)
def test_qtensor_numbers_that_are_read_are_real_values(name: str) -> None:
    x_q = torch.tensor([10, 20, -80, 0], dtype=torch.int8)
    expected = READS[name](x_q * 0.25)
    for x in (quantized(x_q, 0.25), on_grid(x_q, 0.25)):
        assert READS[name](x) == expected


def test_qtensor_code_as_index_is_refused() -> None:
    x = quantized(codes((3,)), 0.3)
    with pytest.raises(UnsupportedOpError, match=r"call .item\(\) on it"):
        torch.tensor([x[0], x[1]])


def test_qtensor_shares_memory_with_its_data() -> None:
    x_q = codes((3,))
    assert quantized(x_q, 0.3).plain.data_ptr() == x_q.data_ptr()


@pytest.mark.parametrize("make", [quantized, on_grid])
def test_qtensor_unsupported_function_is_named_with_the_users_line(make: object) -> None:
    x = make(codes((3, 4)), 0.3)  # type: ignore[operator]
    with pytest.raises(UnsupportedOpError) as caught:
        torch.softmax(x, 1)  # the users line
    message = str(caught.value)
    assert "function softmax is not implemented for QTensor" in message
    assert "test_qtensor.py" in message
    assert "torch.softmax(x, 1)" in message


def test_qtensor_unsupported_function_in_a_model_is_named_with_the_forwards_line() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erfinv(x)  # inner line

    model = nn.Sequential(nn.Identity(), Inner())
    model.qconfig = None
    with pytest.raises(UnsupportedOpError, match=r"erfinv .* in module 1, called at .*:\d+ \(return torch.erfinv"):
        prepare_qat(model)(on_grid(codes((3,)), 0.1))


def test_qtensor_deepcopy_keeps_scale_and_copies_data() -> None:
    x = quantized(codes((3,)), 0.3)
    y = copy.deepcopy(x)
    assert isinstance(y, QTensor)
    assert torch.equal(y.plain, x.plain)
    assert y.plain.data_ptr() != x.plain.data_ptr()
    assert y.qdtype == x.qdtype


def test_handles_function_taken_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="reshape already has a QTensor handler"):
        handles("reshape")(lambda func, args, kwargs: None)


def test_nests_are_searched_and_replaced() -> None:
    x = quantized(codes((3,)), 0.5)
    nest = [1, {"a": (None, x)}, torch.rand(2)]
    assert first_qtensor(nest) is x
    assert first_qtensor([1, {"a": None}]) is None
    assert to_plain(nest)[1]["a"][1].dtype == torch.int8
    assert torch.equal(to_float(nest)[1]["a"][1], x.dequantize())


def test_qtensor_works_in_a_thread_and_in_inference_mode() -> None:
    results: list[Tensor] = []
    x = quantized(codes((3, 4)), 0.5)

    def work() -> None:
        with torch.inference_mode():
            results.append(x.reshape(12).dequantize())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(results[0], x.dequantize().reshape(12))


class AsksForDtype(Stubbed):
    """Code that asks what kind of numbers a value holds, and makes another like it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def body(self, x: Any) -> Any:
        y = self.conv(x)
        mask = (y > 0.1).to(y.dtype) * 0.5
        return y.masked_fill(mask == 0.5, 0.25)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_qtensor_dtype_in_a_models_code_is_that_of_the_real_values(front_end: str) -> None:
    prepare, to_integers = FRONT_ENDS[front_end]
    model = make(AsksForDtype)
    prepared = prepare(model, images())
    with torch.no_grad():
        for x in images():
            assert float((to_integers(prepared)(x) - prepared(x)).abs().max()) < 0.1
            assert float((prepared(x) - model(x)).abs().median()) < 0.05


def test_qtensor_real_facts_of_codes_and_values() -> None:
    x_q = codes((3,))
    for x in (quantized(x_q, 0.3), on_grid(x_q, 0.3), x_q * 0.3):
        assert real_fact(x, "dtype") is torch.float32
        assert real_fact(x, "is_floating_point") is True
    assert real_fact(x_q, "dtype") is torch.int8
