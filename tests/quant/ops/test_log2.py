from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestLog2(TableTests):
    name = "log2"
    truth = staticmethod(lambda x: np.log2(x))
    spellings = (torch.log2,)
