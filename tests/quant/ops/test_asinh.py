from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestAsinh(TableTests):
    name = "asinh"
    truth = staticmethod(lambda x: np.arcsinh(x))
    spellings = (torch.asinh, lambda x: x.asinh())
