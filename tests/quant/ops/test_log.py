from __future__ import annotations

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestLog(TableTests):
    name = "log"
    truth = staticmethod(lambda x: np.log(x))
    spellings = (torch.log, lambda x: x.log())
