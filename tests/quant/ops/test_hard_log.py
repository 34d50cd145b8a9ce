from __future__ import annotations

import numpy as np
import torch

from profiler.quant import HardLog
from profiler.quant.ops.module_forms import hard_log
from tests.quant.ops.table_cases import TableTests


class TestHardLog(TableTests):
    name = "hard_log"
    truth = staticmethod(lambda x: np.maximum(np.log(np.maximum(x, np.exp(-10))), -10))
    modules = (HardLog(),)

    def spelled(self, x: torch.Tensor) -> torch.Tensor:
        return hard_log(x)
