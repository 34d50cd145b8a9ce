"""The path that a recorded run took: whether other inputs take another one, and where they part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant.deploy.compare import PartedError, walk
from profiler.quant.deploy.export import Exported
from profiler.quant.deploy.structure import bind_inputs, map_tensors


def path_note(model: nn.Module, example_inputs: Any, recorded: Exported, record: Callable[[Any], Exported]) -> str:
    """What to know about a recorded run that read Python values from tensors; "" if it read none.

    The model is recorded again with changed inputs (negated, smaller, shifted): where they take another path, the op
    is named where the two part.

    Args:
        model: the model.
        example_inputs: what it was recorded with.
        recorded: that recording.
        record: records the model with other inputs.

    Raises:
        UnsupportedOpError: a number that was read became a constant of the graph.
    """
    if not recorded.reads:
        return ""
    lines = "; ".join(recorded.reads)
    for example in _changed(model, example_inputs):
        try:
            other = record(example)
        except Exception:  # the changed inputs may be none that the model takes
            continue
        try:
            _require_same_constants(recorded, other, lines)
        except PartedError as error:
            return (
                f"the file holds the path that the example inputs take; other inputs take another from {error.op} on "
                f"({error}); decided at {lines}"
            )
    return f"the file holds the path that the example inputs take; it may depend on the contents, decided at {lines}"


def _require_same_constants(recorded: Exported, other: Exported, lines: str) -> None:
    for pair in walk(recorded.proto.graph, other.proto.graph):
        raise _baked(pair.op, f"is a constant of its {pair.node.op_type}", lines)
    if recorded.output_spec != other.output_spec:
        raise _baked("the model's output", "is part of it", lines)


def _baked(where: str, what: str, lines: str) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"{where}: a Python value that was read from a tensor (item(), float(x), if x:) {what}; the graph would "
        f"hold for this input only: write it with tensor operations. Read at {lines}"
    )


def _changed(model: nn.Module, example_inputs: Any) -> Iterator[Any]:
    args, kwargs = bind_inputs(model, example_inputs)
    for change in (_negated, _shifted, _smaller):
        positional, by_name = map_tensors([list(args), kwargs], change)
        yield by_name or tuple(positional)


def _negated(tensor: Tensor) -> Tensor:
    return -tensor if tensor.is_floating_point() else tensor


def _shifted(tensor: Tensor) -> Tensor:
    return tensor.roll(1, -1) if tensor.dim() else tensor


def _smaller(tensor: Tensor) -> Tensor:
    return tensor * 0.25 if tensor.is_floating_point() else tensor
