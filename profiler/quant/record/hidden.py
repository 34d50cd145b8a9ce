"""Finds values that code reads unseen (scripted functions, vmap, extensions): it must get real values, never codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.quant.ops.functional import tensors_in


class HiddenReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells of tensors that aten reads although no torch function was seen that got them.

    Args:
        tell: called with each such tensor.
    """

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tell = tell
        self._shown: list[set[int] | None] = [set()]

    @contextmanager
    def showing(self, values: Any) -> Iterator[None]:
        """Code that is seen runs with these values; None: it may read all, as an op reads its own."""
        self._shown.append(None if values is None else {id(t) for t in tensors_in(values)})
        try:
            yield
        finally:
            self._shown.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compare what aten reads with what was seen, then run it."""
        kwargs = kwargs or {}
        shown = self._shown[-1]
        if shown is not None:
            for tensor in tensors_in([args, kwargs]):
                if id(tensor) not in shown:
                    self._tell(tensor)
        with torch._C.DisableTorchFunction():  # this call of aten is none that the model makes
            return func(*args, **kwargs)
