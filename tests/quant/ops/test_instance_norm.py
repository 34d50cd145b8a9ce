from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.quant.op_forms import assert_nearly_same_codes, codes, fake_quant_of, forms_of, on_grid, quantized
from tests.quant.ops.norm_truth import along_channels, array, group_norm
from tests.quant.ops.parameter_cases import check_forms, check_front_ends, check_training_and_checkpoints, randomized

SHAPES = {nn.InstanceNorm1d: (3, 6, 11), nn.InstanceNorm2d: (2, 6, 5, 4), nn.InstanceNorm3d: (2, 6, 3, 2, 2)}


@pytest.mark.parametrize("cls", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_integer_equals_float64_and_fake_quant(cls: Any, affine: bool) -> None:
    module = randomized(cls(6, affine=affine))
    check_forms(module, lambda x: group_norm(x, 6, module.weight, module.bias, module.eps), SHAPES[cls], 4.0)


@pytest.mark.parametrize("cls", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_with_running_statistics_uses_them(cls: Any, affine: bool) -> None:
    module = randomized(cls(6, affine=affine, track_running_stats=True))

    def truth(x: np.ndarray) -> np.ndarray:
        mean, var = (along_channels(array(t, 0), x.ndim) for t in (module.running_mean, module.running_var))
        y = (x - mean) / np.sqrt(var + module.eps)
        return y * along_channels(array(module.weight, 1), x.ndim) + along_channels(array(module.bias, 0), x.ndim)

    check_forms(module, truth, SHAPES[cls], 25.0)


def test_instance_norm_training_updates_running_statistics_as_float_does() -> None:
    module = nn.InstanceNorm2d(3, track_running_stats=True)
    fake = fake_quant_of(module, 0.05).train()
    x = on_grid(codes((2, 3, 4, 4)), 0.1)
    fake(x)
    reference = nn.InstanceNorm2d(3, track_running_stats=True)
    reference(x.dequantize())
    torch.testing.assert_close(fake.running_mean, reference.running_mean)
    torch.testing.assert_close(fake.running_var, reference.running_var)


def test_instance_norm_without_batch_dimension_equals_a_batch_of_one() -> None:
    fake, integer = forms_of(randomized(nn.InstanceNorm2d(3, affine=True)), 0.03)
    x_q = codes((3, 5, 4))
    y = integer(quantized(x_q, 0.1))
    assert torch.equal(y.plain, integer(quantized(x_q[None], 0.1)).plain[0])
    assert_nearly_same_codes(fake(on_grid(x_q, 0.1)), y)


def test_instance_norm_runs_in_both_front_ends() -> None:
    check_front_ends(randomized(nn.InstanceNorm2d(6, affine=True)))
    check_front_ends(F.instance_norm)
    check_front_ends(randomized(nn.InstanceNorm2d(6, track_running_stats=True)))


def test_instance_norm_trains_and_keeps_its_keys() -> None:
    check_training_and_checkpoints(nn.InstanceNorm2d(6, affine=True))
