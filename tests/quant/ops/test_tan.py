from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestTan(TableTests):
    name = "tan"
    truth = staticmethod(lambda x: np.tan(x))
    spellings = (torch.tan,)
