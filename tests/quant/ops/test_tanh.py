from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestTanh(TableTests):
    name = "tanh"
    truth = staticmethod(lambda x: np.tanh(x))
    spellings = (torch.tanh, lambda x: x.tanh())
    modules = (nn.Tanh(),)
