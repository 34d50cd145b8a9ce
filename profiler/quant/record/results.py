"""Real values in what a recorded model gives back."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.quant.qtensor import QTensor, first_qtensor
from profiler.quant.record.deferred import Deferred


def plain_result(value: Any) -> Any:
    """A result with real values in the place of quantized ones; in objects of the user's classes too."""
    if isinstance(value, Deferred):
        return value.resolve()
    if isinstance(value, Tensor):
        return value.dequantize() if isinstance(value, QTensor) else value
    if isinstance(value, dict) and type(value) not in (dict, OrderedDict, defaultdict):  # a class of the user's
        for key, item in list(value.items()):
            if first_qtensor(item) is not None:
                value[key] = plain_result(item)
    elif isinstance(value, (tuple, list, dict)):
        return tree_map(lambda leaf: leaf if leaf is value else plain_result(leaf), value)
    attributes = getattr(value, "__dict__", None)
    if attributes is None or isinstance(value, (nn.Module, type)):
        return value
    for name, item in list(attributes.items()):
        if isinstance(item, (Tensor, tuple, list, dict)):
            plain = plain_result(item)
            if first_qtensor(item) is not None:
                object.__setattr__(value, name, plain)
    return value
