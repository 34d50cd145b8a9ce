from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestAtan(TableTests):
    name = "atan"
    truth = staticmethod(lambda x: np.arctan(x))
    spellings = (torch.atan, torch.arctan)
