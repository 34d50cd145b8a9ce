from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestExp(TableTests):
    name = "exp"
    truth = staticmethod(lambda x: np.exp(x))
    spellings = (torch.exp, lambda x: x.exp())
