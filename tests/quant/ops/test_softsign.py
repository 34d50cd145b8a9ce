from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestSoftsign(TableTests):
    name = "softsign"
    truth = staticmethod(lambda x: x / (1 + np.abs(x)))
    spellings = (F.softsign,)
    modules = (nn.Softsign(),)
