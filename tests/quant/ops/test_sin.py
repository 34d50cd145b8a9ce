from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestSin(TableTests):
    name = "sin"
    truth = staticmethod(lambda x: np.sin(x))
    spellings = (torch.sin,)
