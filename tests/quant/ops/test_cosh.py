from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestCosh(TableTests):
    name = "cosh"
    truth = staticmethod(lambda x: np.cosh(x))
    spellings = (torch.cosh, lambda x: x.cosh())
