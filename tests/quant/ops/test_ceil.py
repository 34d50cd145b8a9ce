from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestCeil(TableTests):
    name = "ceil"
    truth = staticmethod(lambda x: np.ceil(x))
    spellings = (torch.ceil,)
