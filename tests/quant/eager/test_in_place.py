from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.errors import UnsupportedOpError
from profiler.quant import (
    default_qat_8bit_fake_quant_qconfig,
    get_default_qat_out_qconfig,
    get_default_qat_qconfig,
    prepare_qat,
)
from tests.models import (
    InPlaceAdd,
    Stubbed,
    images,
    make,
)
from tests.quant.stages import FRONT_ENDS, eager


def with_qconfig(model: Any, qconfig: Any = default_qat_8bit_fake_quant_qconfig) -> Any:
    model.qconfig = qconfig
    return model


def test_prepare_qat_in_place_add_changes_the_tensor_it_was_called_on() -> None:
    model = make(InPlaceAdd)
    prepared = eager(model, images())
    assert {"_generated_add_0", "_generated_add_1"} <= set(dict(prepared.named_children()))
    float_y = model(images()[0])
    assert float((prepared(images()[0]) - float_y).detach().abs().max()) < 0.05 * float(float_y.detach().abs().max())


def test_prepare_qat_alias_of_an_in_place_result_sees_it() -> None:
    class Alias(Stubbed):
        def body(self, x: Any) -> Any:
            kept = x
            x += x
            return kept

    assert torch.allclose(eager(Alias().eval(), images())(images()[0]), images()[0] * 2, atol=0.05)


@pytest.mark.parametrize("spelling", ["operator", "method"])
def test_prepare_qat_in_place_add_carries_the_gradient_of_both_operands(spelling: str) -> None:
    class Net(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def body(self, x: Any) -> Any:
            y = self.left(x)
            if spelling == "operator":
                y += self.right(x)
            else:
                y.add_(self.right(x))
            return y

    qat = prepare_qat(with_qconfig(Net()).train())
    qat(images()[0]).square().sum().backward()
    for conv in (qat.left, qat.right):
        assert conv.weight.grad is not None
        assert float(conv.weight.grad.abs().sum()) > 0


def test_prepare_qat_in_place_result_of_another_dtype_is_refused() -> None:
    class Net(Stubbed):
        def body(self, x: Any) -> Any:
            x.add_(x)
            return x

    model = with_qconfig(Net(), get_default_qat_out_qconfig())
    model.quant.qconfig = get_default_qat_qconfig()
    with pytest.raises(UnsupportedOpError, match=r"add_ in .*test_in_place.py:\d+.*does not fit into the qint8"):
        prepare_qat(model)(images()[0])


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("spelling", ["relu", "relu6", "relu_module", "relu6_module"])
@pytest.mark.parametrize("uses_result", [False, True])
def test_in_place_activation_changes_what_later_code_reads(front_end: str, spelling: str, uses_result: bool) -> None:
    class Net(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            if "module" in spelling:
                self.act = nn.ReLU6(True) if "6" in spelling else nn.ReLU(True)

        def body(self, x: Any) -> Any:
            x = self.conv(x)
            y = self.act(x) if "module" in spelling else getattr(F, spelling)(x, inplace=True)
            return x + y if uses_result else x

    stage, convert = FRONT_ENDS[front_end]
    model = make(Net)
    expected = model(images()[0])
    prepared = stage(model, images())
    for y in (prepared(images()[0]), convert(prepared)(images()[0])):
        assert torch.allclose(y, expected, atol=0.05)
