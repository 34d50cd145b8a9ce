from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestFloor(TableTests):
    name = "floor"
    truth = staticmethod(lambda x: np.floor(x))
    spellings = (torch.floor,)
