from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from tests.quant.ops.table_cases import TableTests


class TestClampMax(TableTests):
    name = "clamp_max"
    truth = staticmethod(lambda x: np.minimum(x, 0.3))
    spellings = (lambda x: torch.clamp_max(x, 0.3), lambda x: x.clamp_max(max=0.3))
    bound: ClassVar = {"max": 0.3}
