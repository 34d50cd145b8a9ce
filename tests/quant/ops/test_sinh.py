from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestSinh(TableTests):
    name = "sinh"
    truth = staticmethod(lambda x: np.sinh(x))
    spellings = (torch.sinh, lambda x: x.sinh())
