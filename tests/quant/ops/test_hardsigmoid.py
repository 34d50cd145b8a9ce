from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestHardsigmoid(TableTests):
    name = "hardsigmoid"
    truth = staticmethod(lambda x: np.clip(x + 3, 0, 6) / 6)
    spellings = (F.hardsigmoid,)
    modules = (nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True))
