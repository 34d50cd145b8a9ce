from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestSigmoid(TableTests):
    name = "sigmoid"
    truth = staticmethod(lambda x: 1 / (1 + np.exp(-x)))
    spellings = (torch.sigmoid, F.sigmoid, lambda x: x.sigmoid_(), torch.special.expit)
    modules = (nn.Sigmoid(),)
