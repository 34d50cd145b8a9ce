from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestLogSigmoid(TableTests):
    name = "log_sigmoid"
    truth = staticmethod(lambda x: -np.logaddexp(0, -x))
    spellings = (F.logsigmoid,)
    modules = (nn.LogSigmoid(),)
