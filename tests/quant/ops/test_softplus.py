from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestSoftplus(TableTests):
    name = "softplus"
    truth = staticmethod(lambda x: np.where(2 * x > 5, x, np.log1p(np.exp(2 * x)) / 2))
    spellings = (lambda x: F.softplus(x, 2, 5),)
    modules = (nn.Softplus(2, 5),)
    bound: ClassVar = {"beta": 2, "threshold": 5}
