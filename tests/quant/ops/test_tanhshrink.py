from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestTanhshrink(TableTests):
    name = "tanhshrink"
    truth = staticmethod(lambda x: x - np.tanh(x))
    spellings = (F.tanhshrink,)
    modules = (nn.Tanhshrink(),)

    def share(self, out_dtype: str) -> float:
        """`x - tanh(x)` cancels in float32."""
        return 0.99 if out_dtype == "qint8" else 0.6
