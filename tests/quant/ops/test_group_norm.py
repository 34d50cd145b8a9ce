from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.quant.op_forms import forms_of, quantized
from tests.quant.ops.norm_truth import group_norm
from tests.quant.ops.parameter_cases import check_forms, check_front_ends, check_training_and_checkpoints, randomized


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (3, 6, 7), (2, 6, 3, 2, 2)])
def test_group_norm_integer_equals_float64_and_fake_quant(groups: int, affine: bool, shape: tuple[int, ...]) -> None:
    module: Any = randomized(nn.GroupNorm(groups, 6, affine=affine))
    check_forms(module, lambda x: group_norm(x, groups, module.weight, module.bias, module.eps), shape, 4.0)


def test_group_norm_large_groups_of_int16_extremes_stay_exact() -> None:
    _, integer = forms_of(nn.GroupNorm(1, 2), 0.01)
    x_q = torch.full((1, 2, 256, 256), 32767, dtype=torch.int16)
    x_q[:, :, ::2] = -32768
    y = integer(quantized(x_q, 0.001, "qint16")).plain
    assert y.unique().tolist() == [-100, 100]


def test_group_norm_runs_in_both_front_ends() -> None:
    for dtype in ("qint8", "qint16"):
        check_front_ends(randomized(nn.GroupNorm(2, 6)), dtype)
        check_front_ends(lambda x: F.group_norm(x, 3), dtype)


def test_group_norm_trains_and_keeps_its_keys() -> None:
    check_training_and_checkpoints(nn.GroupNorm(2, 6))
