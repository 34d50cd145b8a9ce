from __future__ import annotations

import torch

from tests.quant.ops.table_cases import TableTests


class TestSquare(TableTests):
    name = "square"
    truth = staticmethod(lambda x: x * x)
    spellings = (torch.square,)
