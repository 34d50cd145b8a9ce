"""Walks tensors in blocks that stay in a core's cache, so that several elementwise passes cost one trip to memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# 0.5 MB of float32: small beside the second-level cache, large beside the cost of starting an operator.
BLOCK_ELEMENTS = 2**17


def is_plain_eager(x: Tensor) -> bool:
    """Whether blocks may be used: an ordinary CPU tensor, and nobody records or compiles the operators that run."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def in_memory_order(x: Tensor) -> Tensor | None:
    """A contiguous view `[..., C]` or `[...]` of a dense tensor, its elements in the order of memory.

    Args:
        x: any shape.

    Returns:
        The tensor itself where it is contiguous, `[N, H, W, C]` for a channels-last `[N, C, H, W]`; None for others.
    """
    if x.is_contiguous():
        return x
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1)
    return None


def flat_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching pieces of tensors of one shape: flat views of at most `BLOCK_ELEMENTS` elements.

    Tensors that are not dense in one order of memory come whole.
    """
    ordered = [view for t in tensors if (view := in_memory_order(t)) is not None]
    if len(ordered) < len(tensors) or any(view.shape != ordered[0].shape for view in ordered):
        return iter([tensors])
    return zip(*(torch.split(view.reshape(-1), BLOCK_ELEMENTS) for view in ordered), strict=True)


def row_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces `[rows, C]` of contiguous tensors `[..., C]`, of about `BLOCK_ELEMENTS` elements each."""
    channels = max(1, tensors[0].shape[-1])
    rows = max(1, BLOCK_ELEMENTS // channels)
    return zip(*(torch.split(t.reshape(-1, channels), rows) for t in tensors), strict=True)


def channel_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching pieces along axis 0 of tensors that broadcast to the first; whole ones where they vary on other axes."""
    size = tensors[0].shape[0] if tensors[0].dim() else 0
    if size == 0 or any(t.dim() != tensors[0].dim() or t.shape[0] != size for t in tensors):
        return iter([tensors])
    rows = max(1, BLOCK_ELEMENTS * size // max(1, tensors[0].numel()))
    return zip(*(torch.split(t, rows) for t in tensors), strict=True)
