from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from profiler.errors import UnsupportedOpError
from profiler.quant.ops.functional import FunctionOp
from tests.quant.op_forms import codes, forms_of, quantized
from tests.quant.ops.parameter_cases import check_forms, check_front_ends


@pytest.mark.parametrize("p", [1, 2.0, float("inf")])
@pytest.mark.parametrize("dim", [1, -1, 0])
def test_normalize_integer_equals_float64_and_fake_quant(p: float, dim: int) -> None:
    def truth(x: np.ndarray) -> np.ndarray:
        length: Any = np.linalg.norm(x, p, axis=dim, keepdims=True)
        return x / np.maximum(length, 1e-12)

    check_forms(FunctionOp("normalize", F.normalize, {"p": p, "dim": dim}), truth, (4, 6, 20), 1.07)


def test_normalize_zero_vector_is_zero() -> None:
    _, integer = forms_of(FunctionOp("normalize", F.normalize), 0.01)
    assert integer(quantized(torch.zeros(2, 4, dtype=torch.int8), 0.1)).plain.abs().max() == 0


def test_normalize_other_norms_are_refused_with_advice() -> None:
    _, integer = forms_of(FunctionOp("normalize", F.normalize, {"p": 3}), 0.01)
    with pytest.raises(UnsupportedOpError, match="p=3 has no integer form; use p = 1, 2 or inf"):
        integer(quantized(codes((2, 4)), 0.1))


def test_normalize_runs_in_both_front_ends() -> None:
    check_front_ends(lambda x: F.normalize(x))
    check_front_ends(lambda x: F.normalize(x, dim=-1), "qint16")
