from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestMish(TableTests):
    name = "mish"
    truth = staticmethod(lambda x: x * np.tanh(np.log1p(np.exp(x))))
    spellings = (F.mish,)
    modules = (nn.Mish(),)
