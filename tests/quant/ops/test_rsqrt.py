from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestRsqrt(TableTests):
    name = "rsqrt"
    truth = staticmethod(lambda x: 1 / np.sqrt(x))
    spellings = (torch.rsqrt,)
