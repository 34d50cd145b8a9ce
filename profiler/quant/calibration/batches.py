"""What users pass as calibration data, as arguments of a prepared model's forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from torch import Tensor, nn

from profiler.errors import ConfigError, DataError
from profiler.quant.batches import Batch, to_device
from profiler.quant.ops.functional import tensors_in

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def take_batches(
    data: Any, model: nn.Module, num_batches: int, batch_process_func: Callable[[Any], Any] | None = None
) -> list[Batch]:
    """The batches of the data on the model's device.

    Args:
        data: one batch (tensor, tuple of arguments, dict of keyword arguments), a list of batches, or a loader.
        model: takes them; values of a tuple beyond the arguments of its forward (labels) are dropped.
        num_batches: how many to take of a loader; of a list all are taken.
        batch_process_func: makes a batch of what the list or loader holds.

    Raises:
        ConfigError: num_batches is below 1.
        DataError: no batch, or something that is none.
    """
    if num_batches < 1:
        raise ConfigError(f"num_batches is {num_batches}; expected at least 1")
    process = batch_process_func or (lambda batch: batch)
    batches = [_as_batch(process(raw), model, index) for index, raw in enumerate(_listed(data, num_batches))]
    if not batches:
        raise DataError("the data holds no batch; give a tensor, a tuple, a dict, a list of batches or a loader")
    return batches


def _listed(data: Any, num_batches: int) -> Iterable[Any]:
    is_one = isinstance(data, (Tensor, dict)) or (isinstance(data, tuple) and any(isinstance(v, Tensor) for v in data))
    if is_one:
        return [data]
    if isinstance(data, (list, tuple)):
        return data
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise DataError(f"batches is {type(data).__name__}; expected a tensor, tuple, dict, list of batches or loader")
    return islice(data, num_batches)


def _as_batch(given: Any, model: nn.Module, index: int) -> Batch:
    if not tensors_in(given):
        raise DataError(
            f"batch {index} is {type(given).__name__} without a tensor; expected a tensor, a tuple of arguments or a "
            "dict of keyword arguments: convert it with batch_process_func"
        )
    if isinstance(given, dict):
        return to_device(Batch((), dict(given)), model)
    args = tuple(given)[: _num_positional(model)] if isinstance(given, (tuple, list)) else (given,)
    return to_device(Batch(args), model)


def _num_positional(model: nn.Module) -> int | None:
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in _POSITIONAL for p in parameters)
