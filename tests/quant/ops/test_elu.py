from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestElu(TableTests):
    name = "elu"
    truth = staticmethod(lambda x: np.where(x > 0, x, np.expm1(x)))
    spellings = (F.elu,)
    modules = (nn.ELU(),)
