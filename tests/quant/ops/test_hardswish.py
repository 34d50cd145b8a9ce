from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestHardswish(TableTests):
    name = "hardswish"
    truth = staticmethod(lambda x: x * np.clip(x + 3, 0, 6) / 6)
    spellings = (F.hardswish,)
    modules = (nn.Hardswish(), nn.Hardswish(inplace=True))
