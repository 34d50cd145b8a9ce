from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.parameter_cases import check_forms, check_front_ends
from tests.quant.ops.softmax_cases import softmax


@pytest.mark.parametrize("axis", [-1, 1])
def test_softmin_integer_equals_float64_and_fake_quant(axis: int) -> None:
    check_forms(nn.Softmin(axis), lambda x: softmax(-x, axis), (3, 5, 4, 21), 1.0)


def test_softmin_runs_in_both_front_ends() -> None:
    check_front_ends(nn.Softmin(1))
    check_front_ends(lambda x: F.softmin(x, -1))
