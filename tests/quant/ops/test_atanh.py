from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestAtanh(TableTests):
    name = "atanh"
    truth = staticmethod(lambda x: np.arctanh(x))
    spellings = (torch.atanh, lambda x: x.atanh())
