"""How far the outputs of a prepared model are from those of the same model with fake quant off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ModelError
from profiler.quant.batches import Batch
from profiler.quant.calibration.keeping import use_state
from profiler.quant.ops.functional import tensors_in
from profiler.quant.qtensor import to_float
from profiler.quant.states import FakeQuantState
from profiler.quant.stubs import DeQuantStub


class OutputError:
    """L2 error at the DeQuantStubs that the user placed; at the outputs of the model where there are none.

    Runs inside `state_kept`; the float reference is taken when this is made, one forward per batch.

    Args:
        model: prepared model.
        batches: what it runs on.
    """

    def __init__(self, model: nn.Module, batches: list[Batch]) -> None:
        self.model, self.batches = model, batches
        self.num_forwards = 0
        self._stubs = [m for m in model.modules() if isinstance(m, DeQuantStub) and not m.is_automatic]
        use_state(model, FakeQuantState._FLOAT)
        self._reference = [[t.clone() for t in self._outputs(batch)] for batch in batches]
        if not any(self._reference):
            raise ModelError(f"{type(model).__name__} gives no float tensor; put a DeQuantStub where its results leave")

    def measure(self, limit: float = math.inf) -> float:
        """Square root of the summed squared error over all outputs and batches, in VALIDATION.

        Args:
            limit: the rest of the batches is left out, and the result is inf, once the error is not below this.

        Raises:
            ModelError: the outputs have other shapes than in float.
        """
        use_state(self.model, FakeQuantState.VALIDATION)
        total = 0.0
        for batch, reference in zip(self.batches, self._reference, strict=True):
            total += self._squared_error(reference, self._outputs(batch))
            if math.isnan(total) or math.sqrt(total) >= limit:
                return math.inf
        return math.sqrt(total)

    def _squared_error(self, reference: list[Tensor], test: list[Tensor]) -> float:
        if [r.shape for r in reference] != [t.shape for t in test]:
            raise ModelError(
                f"the outputs have the shapes {[list(t.shape) for t in test]} with fake quant and "
                f"{[list(r.shape) for r in reference]} without; put DeQuantStubs before the code that picks results"
            )
        return sum(_squared_distance(r, t) for r, t in zip(reference, test, strict=True))

    def _outputs(self, batch: Batch) -> list[Tensor]:
        self.num_forwards += 1
        seen: list[Any] = []
        with _hooked(self._stubs, seen):
            result = batch.run(self.model)
        found = tensors_in(to_float(seen if self._stubs else result))
        return [t for t in found if t.is_floating_point()]


def _squared_distance(reference: Tensor, test: Tensor) -> float:
    """Over the places where the reference is finite."""
    difference = torch.where(torch.isfinite(reference), test.double() - reference.double(), 0.0)
    return float(difference.square().sum())


@contextmanager
def _hooked(stubs: list[DeQuantStub], seen: list[Any]) -> Iterator[None]:
    handles = [s.register_forward_hook(lambda module, args, result: seen.append(result)) for s in stubs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
