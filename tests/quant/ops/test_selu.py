from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests

# Klambauer et al. 2017, Self-Normalizing Neural Networks, appendix A
ALPHA, SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


class TestSelu(TableTests):
    name = "selu"
    truth = staticmethod(lambda x: SCALE * np.where(x > 0, x, ALPHA * np.expm1(x)))
    spellings = (F.selu, torch.selu)
    modules = (nn.SELU(),)
