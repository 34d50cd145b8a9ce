"""What the tests of maximum and minimum share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.ops.arithmetic_cases import rounded


def truth_of(choose: Any) -> Any:
    """Integer truth of an elementwise choice between two operands."""

    def truth(x: Any, x_scale: Any, y: Any, y_scale: Any, out_scale: Any, dtype: str) -> np.ndarray:
        return rounded(choose(x * (x_scale / out_scale), y * (y_scale / out_scale)), dtype)

    return truth


def check_reduction(reduce: Any, dtype: str) -> None:
    """max or min of one tensor: values keep the scale, indices are plain, in both stages alike."""
    x_q = codes((5, 6, 7), 3, dtype) // 50  # many ties
    expected = reduce(x_q)
    for x in (quantized(x_q, 0.3, dtype), on_grid(x_q, 0.3, dtype)):
        result = reduce(x)
        values, indices = result if isinstance(result, tuple) else (result, None)
        assert (values.qdtype, float(values.scale)) == (dtype, float(torch.tensor(0.3)))
        assert torch.equal(values.int_repr(), expected[0] if isinstance(expected, tuple) else expected)
        if indices is not None:
            assert type(indices) is torch.Tensor
            assert torch.equal(indices, expected[1])
