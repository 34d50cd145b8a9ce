"""Every method of FloatFunctional in its three forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from profiler.errors import UnsupportedOpError
from profiler.quant import DeQuantStub, FloatFunctional, QuantStub
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.arithmetic_cases import batches, distance
from tests.quant.stages import FRONT_ENDS

METHODS: dict[str, Any] = {
    "add": lambda f, x, y: f.add(x, y),
    "add_scalar": lambda f, x, y: f.add_scalar(x, 0.5),
    "add_relu": lambda f, x, y: f.add_relu(x, y),
    "sub": lambda f, x, y: f.sub(x, y),
    "mul": lambda f, x, y: f.mul(x, y),
    "mul_scalar": lambda f, x, y: f.mul_scalar(x, -0.5),
    "div": lambda f, x, y: f.div(x, y),
    "maximum": lambda f, x, y: f.maximum(x, y),
    "minimum": lambda f, x, y: f.minimum(x, y),
    "matmul": lambda f, x, y: f.matmul(x, y),
    "cat": lambda f, x, y: f.cat([x, y], 1),
    "stack": lambda f, x, y: f.stack([x, y], dim=1),
    "mean": lambda f, x, y: f.mean(x, 1, keepdim=True),
    "sum": lambda f, x, y: f.sum(x, dim=(0, 1)),
}
FLOAT = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum,
    "minimum": torch.minimum, "matmul": torch.matmul,
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.quant, self.dequant, self.ff = QuantStub(), DeQuantStub(), FloatFunctional()
        self.left, self.right, self.method = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), method

    def forward(self, x: Any) -> Any:
        x = self.quant(x)
        left, right = self.left(x), self.right(x)
        return self.dequant(METHODS[self.method](self.ff, left, right)), self.dequant(right)


@pytest.mark.parametrize("method", METHODS)
def test_functional_fake_quant_and_integer_form_are_equal(method: str) -> None:
    x_q, y_q = codes((40, 40)), codes((40, 40), 1)
    fake, integer = forms_of(FloatFunctional(), 0.0731415)
    y_fq = METHODS[method](fake, on_grid(x_q, 0.0131417), on_grid(y_q, 0.0414214))
    assert_nearly_same_codes(y_fq, METHODS[method](integer, quantized(x_q, 0.0131417), quantized(y_q, 0.0414214)))


@pytest.mark.parametrize("method", FLOAT)
def test_functional_float_form_is_the_torch_function(method: str) -> None:
    x, y = torch.randn(4, 4), torch.randn(4, 4)
    assert torch.equal(getattr(FloatFunctional(), method)(x, y), FLOAT[method](x, y))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_functional_in_networks(method: str, front_end: str) -> None:
    torch.manual_seed(0)
    stage, convert = FRONT_ENDS[front_end]
    model = Net(method).eval()
    prepared = stage(model, batches())
    y = prepared(batches()[0])[0].detach()
    if method != "div":  # near a pole any rounding of the divisor is seen
        assert distance(y, model(batches()[0])[0].detach()) < 0.05
    converted = convert(prepared)
    assert distance(converted(batches()[0])[0], y) < 0.01
    assert_equals_onnx(converted, batches()[0])


def test_functional_unknown_function_is_an_error() -> None:
    with pytest.raises(UnsupportedOpError, match=r"FloatFunctional\.erfinv has no quantized form"):
        FloatFunctional()("erfinv", torch.rand(3))
