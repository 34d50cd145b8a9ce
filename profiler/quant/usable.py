"""Whether a float model can be quantized at all: float32, without NaN in its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from profiler.errors import ModelError
from profiler.quant.masks import is_additive_mask


def _tensors(model: nn.Module) -> list[tuple[str, Any]]:
    return [*model.named_parameters(), *model.named_buffers()]


def require_usable_weights(model: nn.Module) -> None:
    """Refuse a model in half precision, or with NaN or Inf in its parameters or buffers (-inf in a mask is fine).

    Raises:
        ModelError: names the lazy or bad tensors, their dtype, or how many of their values are bad.
    """
    lazy = [name for name, tensor in _tensors(model) if is_lazy(tensor)]
    if lazy:
        raise ModelError(
            f"{type(model).__name__}: {lazy[0]} has no shape and no values yet; run the model once, and train it or "
            "load its weights"
        )
    tensors = [(n, t) for n, t in _tensors(model) if t.is_floating_point()]
    half = [(name, tensor.dtype) for name, tensor in tensors if tensor.dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise ModelError(
            f"{type(model).__name__}: {half[0][0]} is {half[0][1]}; expected float32, whose rounding hides no error of "
            "int8: pass model.float() and float32 data"
        )
    bad = [
        f"{name}: {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values"
        for name, tensor in tensors
        if not bool(torch.isfinite(tensor).all()) and not is_additive_mask(tensor)
    ]
    if bad:
        raise ModelError(
            f"{type(model).__name__} has NaN or Inf in its weights ({'; '.join(bad[:5])}{' ...' if bad[5:] else ''}); "
            "no scale can be made from them: load a sound checkpoint"
        )
