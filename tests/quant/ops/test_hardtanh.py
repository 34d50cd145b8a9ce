from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestHardtanh(TableTests):
    name = "hardtanh"
    truth = staticmethod(lambda x: np.clip(x, -0.5, 2))
    spellings = (lambda x: F.hardtanh(x, -0.5, 2),)
    modules = (nn.Hardtanh(-0.5, 2), nn.Hardtanh(-0.5, 2, inplace=True))
    bound: ClassVar = {"min_val": -0.5, "max_val": 2}
