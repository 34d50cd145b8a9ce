from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestHardshrink(TableTests):
    name = "hardshrink"
    truth = staticmethod(lambda x: np.where(np.abs(x) > 0.7, x, 0))
    spellings = (lambda x: F.hardshrink(x, 0.7),)
    modules = (nn.Hardshrink(0.7),)
    bound: ClassVar = {"lambd": 0.7}
