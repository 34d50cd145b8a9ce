from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.quant.integer_reference import requantized
from tests.quant.op_forms import assert_codes_equal, forms_of, quantized
from tests.quant.ops.norm_truth import along_channels, array
from tests.quant.ops.parameter_cases import check_forms, check_front_ends, check_training_and_checkpoints
from tests.quant.ops.table_cases import every_code

S = np.float32


def with_slopes(*slopes: float) -> nn.PReLU:
    module = nn.PReLU(len(slopes))
    module.weight.data = torch.tensor(slopes)
    return module


@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0, 3.0])
@pytest.mark.parametrize("out_scale", [0.05, 0.11])
def test_prelu_integer_every_code_equals_integer_arithmetic(slope: float, out_scale: float) -> None:
    _, integer = forms_of(with_slopes(slope), out_scale)
    x_q = every_code("qint8").numpy().astype(np.int64)
    m = S(0.07) / S(out_scale)
    expected = np.where(x_q >= 0, requantized(x_q, m), requantized(x_q, S(slope) * m))
    assert_codes_equal(integer(quantized(every_code("qint8"), 0.07)), expected)


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5), (2, 4, 5, 3)])
@pytest.mark.parametrize("module", [with_slopes(0.25), with_slopes(0.1, -0.3, 0.9, 0.0)])
def test_prelu_one_slope_or_one_per_channel_equals_float64(shape: tuple[int, ...], module: Any) -> None:
    slopes = array(module.weight, 0) if module.num_parameters > 1 else array(module.weight, 0)[0]
    check_forms(module, lambda x: np.where(x >= 0, x, x * along_channels(np.asarray(slopes), x.ndim)), shape, 10.0)


def test_prelu_runs_in_both_front_ends() -> None:
    for dtype in ("qint8", "qint16"):
        check_front_ends(with_slopes(0.1, 0.2, 0.3, -0.1, 0.0, 0.9), dtype)


def test_prelu_function_with_a_parameter_runs_in_both_front_ends() -> None:
    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor([0.3]))

        def forward(self, x: Any) -> Any:
            return F.prelu(x, self.slope)

    check_front_ends(Function())


def test_prelu_trains_and_keeps_its_keys() -> None:
    check_training_and_checkpoints(nn.PReLU(6))
