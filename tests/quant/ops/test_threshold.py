from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestThreshold(TableTests):
    name = "threshold"
    truth = staticmethod(lambda x: np.where(x > 0.5, x, -1))
    spellings = (lambda x: F.threshold(x, 0.5, -1),)
    modules = (nn.Threshold(0.5, -1),)
    bound: ClassVar = {"threshold": 0.5, "value": -1}
