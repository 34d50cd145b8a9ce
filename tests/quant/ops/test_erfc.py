from __future__ import annotations

import math

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestErfc(TableTests):
    name = "erfc"
    truth = staticmethod(lambda x: np.vectorize(math.erfc)(x))
    spellings = (torch.erfc, lambda x: x.erfc())
