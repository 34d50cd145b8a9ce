from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestExp2(TableTests):
    name = "exp2"
    truth = staticmethod(lambda x: np.exp2(x))
    spellings = (torch.exp2,)
