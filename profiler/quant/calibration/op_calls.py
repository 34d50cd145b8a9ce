"""The calls of one op, with quantized and with float values before it; a forward ends behind the last of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.errors import ModelError
from profiler.quant.batches import Batch
from profiler.quant.calibration.keeping import use_state
from profiler.quant.calibration.rounding import Call
from profiler.quant.qtensor import QTensor, to_plain
from profiler.quant.states import FakeQuantState


class _SeenEnough(Exception):
    """Ends a forward whose rest is not needed."""


def count_calls(model: nn.Module, ops: Mapping[str, nn.Module], batches: list[Batch]) -> dict[str, list[int]]:
    """How often each op runs in each batch, in VALIDATION; ops in the order of their first run, uncalled ones left out.

    Returns:
        Name -> one number per batch.
    """
    use_state(model, FakeQuantState.VALIDATION)
    counts: list[Counter[str]] = []
    order: dict[str, None] = {}

    def note(name: str) -> None:
        counts[-1][name] += 1
        order[name] = None

    handles = [op.register_forward_pre_hook(lambda m, args, name=name: note(name)) for name, op in ops.items()]
    try:
        for batch in batches:
            counts.append(Counter())
            batch.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: [count[name] for count in counts] for name in order}


def collect_calls(
    model: nn.Module, op: nn.Module, batches: list[Batch], numbers: list[int], float_weights: Any
) -> list[Call]:
    """The calls of one op: arguments as the quantized model gives them, results of the float model.

    Args:
        model: prepared model in `state_kept`.
        op: the op.
        batches: what the model runs on.
        numbers: calls per batch.
        float_weights: context manager under which the weights are the original ones.

    Raises:
        ModelError: the op is called otherwise in float than with fake quant.
    """
    use_state(model, FakeQuantState.VALIDATION)
    inputs = [_inputs(model, op, batch, number) for batch, number in zip(batches, numbers, strict=True)]
    use_state(model, FakeQuantState._FLOAT)
    with float_weights:
        targets = [_results(model, op, batch, number) for batch, number in zip(batches, numbers, strict=True)]
    if [len(given) for given in inputs] != [len(made) for made in targets]:
        raise ModelError("it is called another number of times in float than with fake quant")
    return [
        Call(args, kwargs, target)
        for given, made in zip(inputs, targets, strict=True)
        for (args, kwargs), target in zip(given, made, strict=True)
        if target.numel() and not _runs_in_float(op, args)
    ]


def _runs_in_float(op: nn.Module, args: tuple[Any, ...]) -> bool:
    """In a recorded model, ops on a path that was not recorded get real values and do not round their weights."""
    return bool(getattr(op, "takes_floats", False)) and not any(isinstance(value, QTensor) for value in args)


def _inputs(model: nn.Module, op: nn.Module, batch: Batch, number: int) -> list[tuple[Any, Any]]:
    seen: list[tuple[Any, Any]] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        if len(seen) < number:
            seen.append(tree_map(_copy, (args, kwargs)))
        if len(seen) == number:
            raise _SeenEnough

    with _hook(op.register_forward_pre_hook(note, with_kwargs=True)):
        _run(model, batch, number)
    return seen


def _results(model: nn.Module, op: nn.Module, batch: Batch, number: int) -> list[Tensor]:
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, result: Any) -> None:
        if len(seen) < number:
            seen.append(to_plain(result).detach().clone())
        if len(seen) == number:
            raise _SeenEnough

    with _hook(op.register_forward_hook(note)):
        _run(model, batch, number)
    return seen


def _run(model: nn.Module, batch: Batch, number: int) -> None:
    if number:
        with suppress(_SeenEnough):
            batch.run(model)


def _copy(value: Any) -> Any:
    """Later ops may write over what an op got."""
    if isinstance(value, QTensor):
        return value.like(value.plain.detach().clone())
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
