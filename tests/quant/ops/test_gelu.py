from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.quant.ops.table_cases import TableTests


class TestGelu(TableTests):
    name = "gelu"
    truth = staticmethod(lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)
    spellings = (F.gelu,)
    modules = (nn.GELU(),)


class TestGeluTanh(TableTests):
    name = "gelu"
    truth = staticmethod(lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)
    spellings = (lambda x: F.gelu(x, approximate="tanh"),)
    modules = (nn.GELU(approximate="tanh"),)
    bound: ClassVar = {"approximate": "tanh"}
