from __future__ import annotations

import math

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestErf(TableTests):
    name = "erf"
    truth = staticmethod(lambda x: np.vectorize(math.erf)(x))
    spellings = (torch.erf,)
