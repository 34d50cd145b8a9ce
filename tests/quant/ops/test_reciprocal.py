from __future__ import annotations

import torch

from tests.quant.ops.table_cases import TableTests


class TestReciprocal(TableTests):
    name = "reciprocal"
    truth = staticmethod(lambda x: 1 / x)
    spellings = (torch.reciprocal,)
