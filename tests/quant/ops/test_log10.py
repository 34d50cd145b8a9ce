from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestLog10(TableTests):
    name = "log10"
    truth = staticmethod(lambda x: np.log10(x))
    spellings = (torch.log10,)
