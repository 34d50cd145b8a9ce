from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.quant.op_forms import forms_of, quantized
from tests.quant.ops.norm_truth import array
from tests.quant.ops.parameter_cases import check_forms, check_front_ends, check_training_and_checkpoints, randomized


@pytest.mark.parametrize(("shape", "eps"), [((24,), None), ((24,), 0.3), ((5, 24), 1e-6)])
@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm_integer_equals_float64_and_fake_quant(
    shape: tuple[int, ...], eps: float | None, affine: bool
) -> None:
    module: Any = randomized(nn.RMSNorm(shape, eps=eps, elementwise_affine=affine))
    axes, floor = tuple(range(-len(shape), 0)), np.float64(np.finfo(np.float32).eps) if eps is None else eps

    def truth(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axes, keepdims=True) + floor) * array(module.weight, 1)

    check_forms(module, truth, (7, 5, 24), 4.0)


def test_rms_norm_zero_row_without_eps_is_zero_not_nan() -> None:
    _, integer = forms_of(nn.RMSNorm(4, eps=0.0), 0.02)
    assert integer(quantized(torch.zeros(2, 4, dtype=torch.int8), 0.1)).plain.abs().max() == 0


def test_rms_norm_runs_in_both_front_ends() -> None:
    for dtype in ("qint8", "qint16"):
        check_front_ends(randomized(nn.RMSNorm(5)), dtype)
    check_front_ends(lambda x: F.rms_norm(x, (5,)))


def test_rms_norm_trains_and_keeps_its_keys() -> None:
    check_training_and_checkpoints(nn.RMSNorm(5))
