from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestCos(TableTests):
    name = "cos"
    truth = staticmethod(lambda x: np.cos(x))
    spellings = (torch.cos,)
