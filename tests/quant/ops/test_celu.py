from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestCelu(TableTests):
    name = "celu"
    truth = staticmethod(lambda x: np.where(x > 0, x, 0.5 * np.expm1(x / 0.5)))
    spellings = (lambda x: F.celu(x, 0.5),)
    modules = (nn.CELU(0.5),)
    bound: ClassVar = {"alpha": 0.5}
