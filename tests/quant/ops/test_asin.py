from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestAsin(TableTests):
    name = "asin"
    truth = staticmethod(lambda x: np.arcsin(x))
    spellings = (torch.asin, lambda x: x.asin())
