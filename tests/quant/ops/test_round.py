from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestRound(TableTests):
    name = "round"
    truth = staticmethod(lambda x: np.rint(x))
    spellings = (torch.round,)
