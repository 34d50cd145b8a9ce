from __future__ import annotations

import numpy as np
import torch

from profiler.quant import FloatFunctional
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, forms_of, on_grid, quantized
from tests.quant.ops.arithmetic_cases import S, every_pair, rounded


def test_add_relu_every_pair_of_codes_equals_arithmetic() -> None:
    x_q, y_q = every_pair()
    fake, integer = forms_of(FloatFunctional(), 0.2136)
    steps = x_q.numpy().astype(S) * (S(0.0131417) / S(0.2136)) + y_q.numpy().astype(S) * (S(0.4142136) / S(0.2136))
    result = integer.add_relu(quantized(x_q, 0.0131417), quantized(y_q, 0.4142136))
    assert_codes_equal(result, np.maximum(rounded(steps), 0))
    assert_nearly_same_codes(fake.add_relu(on_grid(x_q, 0.0131417), on_grid(y_q, 0.4142136)), result)


def test_add_relu_float_functional_is_relu_of_the_sum() -> None:
    x, y = torch.randn(3, 4), torch.randn(4)
    assert torch.equal(FloatFunctional().add_relu(x, y), torch.relu(x + y))
