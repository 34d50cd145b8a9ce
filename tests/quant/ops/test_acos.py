from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestAcos(TableTests):
    name = "acos"
    truth = staticmethod(lambda x: np.arccos(x))
    spellings = (torch.acos, lambda x: x.acos())
