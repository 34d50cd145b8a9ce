from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestSilu(TableTests):
    name = "silu"
    truth = staticmethod(lambda x: x / (1 + np.exp(-x)))
    spellings = (F.silu, lambda x: F.silu(x, inplace=True))
    modules = (nn.SiLU(), nn.SiLU(inplace=True))
