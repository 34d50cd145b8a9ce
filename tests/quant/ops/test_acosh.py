from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestAcosh(TableTests):
    name = "acosh"
    truth = staticmethod(lambda x: np.arccosh(x))
    spellings = (torch.acosh, lambda x: x.acosh())
