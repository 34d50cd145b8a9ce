from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestLeakyRelu(TableTests):
    name = "leaky_relu"
    truth = staticmethod(lambda x: np.where(x >= 0, x, 0.01 * x))
    spellings = (F.leaky_relu,)
    modules = (nn.LeakyReLU(), nn.LeakyReLU(inplace=True))
