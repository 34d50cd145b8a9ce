from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant.ops.softmax import _log_of_total
from tests.quant.op_forms import forms_of, quantized
from tests.quant.ops.parameter_cases import check_forms, check_front_ends
from tests.quant.ops.softmax_cases import log_softmax


@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_log_softmax_integer_equals_float64_and_fake_quant(axis: int) -> None:
    check_forms(nn.LogSoftmax(axis), lambda x: log_softmax(x, axis), (3, 5, 4, 21), 30.0)


def test_log_softmax_long_rows_equal_float64() -> None:
    check_forms(nn.LogSoftmax(-1), lambda x: log_softmax(x, -1), (2, 5000), 40.0)


def test_log_softmax_table_of_logarithms_is_within_a_billionth() -> None:
    class Out:
        cache: dict[Any, Any] = {}  # noqa: RUF012

    ones = 2.0**30
    totals = torch.cat([ones * torch.linspace(1, 3, 20001).double(), ones * 2.0 ** torch.arange(0, 23).double(),
                        ones * 2.0 ** torch.arange(1, 23).double() - 1]).round()  # fmt: skip
    logs = _log_of_total(Out(), totals).numpy()  # type: ignore[arg-type]
    np.testing.assert_allclose(logs, np.log(totals.numpy() / ones), rtol=0, atol=1e-9)


def test_log_softmax_of_one_element_is_zero() -> None:
    _, integer = forms_of(nn.LogSoftmax(-1), 0.1)
    assert integer(quantized(torch.tensor([[5], [-128]], dtype=torch.int8), 0.1)).plain.abs().max() == 0


def test_log_softmax_runs_in_both_front_ends() -> None:
    check_front_ends(nn.LogSoftmax(1))
    check_front_ends(lambda x: F.log_softmax(x, dim=-1))
    check_front_ends(lambda x: x.log_softmax(1), "qint16")
