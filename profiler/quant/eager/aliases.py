"""Notices reads of a quantized value whose memory was written through another one with another scale."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from profiler.errors import UnsupportedOpError
from profiler.quant.fx.in_place import VIEWS
from profiler.quant.ops.functional import tensors_in
from profiler.quant.qtensor import QTensor, user_line

_STALE = "quant_stale"
_WRITTEN_TO = "quant_written_to"  # of the result of `x += y`, which Python knows under the name of x from then on


class Aliases:
    """Quantized values of one forward that show memory of each other."""

    def __init__(self) -> None:
        self._known: list[weakref.ref[QTensor]] = []
        self._copied: list[tuple[weakref.ref[QTensor], weakref.ref[QTensor]]] = []
        self._has_stale = False

    def note(self, function: str, args: tuple[Any, ...], result: Any) -> None:
        """Remember what a function gave that shows the memory of its argument."""
        if function not in VIEWS or not args or not isinstance(args[0], QTensor):
            return
        place = _place(args[0])
        views = [t for t in tensors_in(result) if isinstance(t, QTensor) and t is not args[0] and _place(t) == place]
        if function in ("view", "view_as") and not views and isinstance(result, QTensor):
            self._copied.append((weakref.ref(args[0]), weakref.ref(result)))
        self._known += [weakref.ref(t) for t in ([args[0], *views] if views else [])]

    def in_memory_of(self, target: QTensor) -> list[QTensor]:
        """Other values of this forward that show the target's memory."""
        place = _place(target) if self._known else None
        live: dict[int, Any] = {id(t): t for ref in self._known if (t := ref()) is not None and t is not target}
        return [t for t in live.values() if type(t) is QTensor and _place(t) == place]  # some became plain ones

    def require_no_copy(self, target: QTensor) -> None:
        """Refuse a write into codes that lie channels last and were copied for a view, or into that copy.

        Raises:
            UnsupportedOpError: the other of the two is still there.
        """
        for pair in self._copied:
            both = [ref() for ref in pair]
            if None not in both and any(t is target for t in both):
                raise UnsupportedOpError(
                    f"a view of quantized values, or what it is a view of, is overwritten at {user_line()} on a way "
                    "that was not recorded; record and calibrate a batch that goes this way"
                )

    def written(self, target: QTensor, result: Any, line: str) -> None:
        """A value got the codes and scale of a result: others in its memory now have a scale that is not theirs."""
        target.__dict__.pop(_STALE, None)
        if not self._known:
            return
        result.__dict__[_WRITTEN_TO] = _place(target)
        for other in self.in_memory_of(target):
            if other.scale is not target.scale:
                other.__dict__[_STALE] = line
                self._has_stale = True

    def require_fresh(self, values: Any, *, overwrites: bool = False) -> None:
        """Refuse values that were written through others.

        Args:
            values: what an op is going to read.
            overwrites: `target[index] = value`: where the value lies in the target's own memory (`x[:, 0] *= 2`) it
                is what was written, and the target becomes right.

        Raises:
            UnsupportedOpError: a value's memory holds numbers of another scale.
        """
        if not self._has_stale:
            return
        tensors = [t for t in tensors_in(values) if isinstance(t, QTensor)]
        if overwrites and len(tensors) > 1:
            place = tensors[-1].__dict__.get(_WRITTEN_TO, _place(tensors[-1]))
            if place == _place(tensors[0]):
                tensors[0].__dict__.pop(_STALE, None)
        for tensor in tensors:
            line = tensor.__dict__.get(_STALE)
            if line:
                raise UnsupportedOpError(
                    f"a quantized value is read at {user_line()} after another name of its memory was overwritten at "
                    f"{line}: the two have different scales; write y = f(x) instead of x.f_(), or prepare the model "
                    "by prepare(method=PrepareMethod.JIT), which runs such writes in float"
                )


def _place(tensor: Tensor) -> int | None:
    with torch._C.DisableTorchFunction():
        try:
            return tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):
            return None
