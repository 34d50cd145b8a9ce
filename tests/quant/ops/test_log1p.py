from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestLog1p(TableTests):
    name = "log1p"
    truth = staticmethod(lambda x: np.log1p(x))
    spellings = (torch.log1p,)
