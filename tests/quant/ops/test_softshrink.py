from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestSoftshrink(TableTests):
    name = "softshrink"
    truth = staticmethod(lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.3, 0))
    spellings = (lambda x: F.softshrink(x, 0.3),)
    modules = (nn.Softshrink(0.3),)
    bound: ClassVar = {"lambd": 0.3}
