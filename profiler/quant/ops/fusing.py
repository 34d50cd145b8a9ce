"""Builds the float form of a fused group: weighted op, batch norm, add and activation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from profiler.quant.modules import adopt
from profiler.quant.ops.epilogue import Epilogue
from profiler.quant.ops.fold import fold_batch_norm
from profiler.quant.ops.gemm import FusedGemm
from profiler.quant.qat_mode import QATMode, get_qat_mode


def fuse_gemm(
    cls: type[FusedGemm], module: Any, norm: Any | None, epilogue: Epilogue, names: tuple[str, ...]
) -> FusedGemm:
    """Fused float form of a weighted module, an optional batch norm and an epilogue.

    Args:
        cls: the fused class of the module's kind.
        module: float module, or an already fused one whose epilogue is extended.
        norm: batch norm to fold, or None.
        epilogue: what follows.
        names: op names of the group, in order.
    """
    fused = adopt(cls, module)
    former = fused._modules.pop("bn", None)
    if former is not None and norm is None:
        fused.bn = former
    elif former is not None:
        _fold_into(fused, former)
    if norm is not None and get_qat_mode() is QATMode.WithBN:
        fused.bn = norm
    elif norm is not None:
        _fold_into(fused, norm)
    fused.epilogue = replace(epilogue, has_add=epilogue.has_add or fused.epilogue.has_add)
    fused.fused_names = names
    return fused


@torch.no_grad()
def _fold_into(fused: FusedGemm, norm: Any) -> None:
    """Replace the weight and bias of a fused module by those with a batch norm folded in."""
    requires_grad = fused.weight.requires_grad
    rows, bias = fold_batch_norm(fused.rows(fused.weight), fused.bias, norm)
    fused.weight = nn.Parameter(fused.from_rows(rows).contiguous(), requires_grad=requires_grad)
    fused.bias = nn.Parameter(bias, requires_grad=requires_grad)
