from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestExpm1(TableTests):
    name = "expm1"
    truth = staticmethod(lambda x: np.expm1(x))
    spellings = (torch.expm1,)
