from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestSqrt(TableTests):
    name = "sqrt"
    truth = staticmethod(lambda x: np.sqrt(x))
    spellings = (torch.sqrt, lambda x: x.sqrt())
