from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestTrunc(TableTests):
    name = "trunc"
    truth = staticmethod(lambda x: np.trunc(x))
    spellings = (torch.trunc, torch.fix)
