"""From what users pass as data to batches that fit the model's forward."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.errors import DataError
from profiler.quant.ops.functional import tensors_in


@dataclass(frozen=True)
class Batch:
    """Arguments of one forward."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """One forward on copies of the tensors, so that in-place models cannot change the user's data."""
        return model(*_clone(self.args), **_clone(self.kwargs))

    def clone(self) -> Batch:
        """The same arguments with copies of the tensors."""
        return Batch(_clone(self.args), _clone(self.kwargs))

    def positional(self, model: nn.Module) -> tuple[Any, ...]:
        """Copies of the arguments in the order of the forward's parameters, defaults filled in."""
        bound = inspect.signature(model.forward).bind(*_clone(self.args), **_clone(self.kwargs))
        bound.apply_defaults()
        values: list[Any] = []
        for name, value in bound.arguments.items():
            kind = inspect.signature(model.forward).parameters[name].kind
            values.extend(value if kind is inspect.Parameter.VAR_POSITIONAL else [value])
        return tuple(values)

    @property
    def shapes(self) -> str:
        """Shapes and dtypes for messages."""
        parts = [f"{tuple(t.shape)} {t.dtype}" for t in tensors_in([self.args, self.kwargs])]
        return ", ".join(parts) or "no tensor"


@dataclass(frozen=True)
class Batches:
    """What was taken from the user's data, and what was done to it."""

    items: tuple[Batch, ...]
    notes: tuple[str, ...]


def take_batches(
    data: Any, model: nn.Module, num_batches: int, batch_process_func: Callable[[Any], Any] | None = None
) -> Batches:
    """The first batches of the data, as arguments of `model.forward`, on the model's device.

    Args:
        data: one batch (tensor, tuple of arguments, dict of keyword arguments) or an iterable of batches.
        model: tells which arguments fit, and the device.
        num_batches: how many to take at most, at least 1.
        batch_process_func: applied to each batch first.

    Returns:
        Batches; where the data yields more values than the forward takes (`(x, y)` pairs) the rest is dropped and
        noted.

    Raises:
        DataError: no data, a batch without tensors, NaN in a batch, or a batch that the forward's signature refuses.
    """
    if num_batches < 1:
        raise DataError(f"num_batches is {num_batches}; expected at least 1")
    items: list[Batch] = []
    notes: dict[str, None] = {}
    for index, raw in enumerate(_first(data, num_batches)):
        batch, note = fit_batch(_processed(raw, index, batch_process_func), model, index)
        _check_values(batch, index)
        items.append(to_device(batch, model))
        if note:
            notes[note] = None
    if not items:
        raise DataError(
            "the data holds no batch; pass a tensor, a tuple, a dict, or an iterable that yields at least one of them"
        )
    return Batches(tuple(items), tuple(notes))


def _first(data: Any, num_batches: int) -> list[Any]:
    """The first batches as they are; one more is not asked for."""
    taken: list[Any] = []
    batches = iter(_iterate(data))
    while len(taken) < num_batches:
        try:
            taken.append(next(batches))
        except StopIteration:
            break
        except Exception as error:
            raise DataError(
                f"the data raised {type(error).__name__} while batch {len(taken)} was read: {error}; expected an "
                "iterable of batches: iterate over it once by itself"
            ) from error
    return taken


def _processed(raw: Any, index: int, batch_process_func: Callable[[Any], Any] | None) -> Any:
    if batch_process_func is None:
        return raw
    try:
        return batch_process_func(raw)
    except Exception as error:
        raise DataError(
            f"batch {index} is {type(raw).__name__}: batch_process_func raised {type(error).__name__}: {error}; it "
            "must turn what the data yields into a tensor, a tuple of arguments or a dict"
        ) from error


def fit_batch(given: Any, model: nn.Module, index: int) -> tuple[Batch, str]:
    """One batch as arguments of the forward, and a note on what was dropped.

    Raises:
        DataError: the forward's signature refuses it.
    """
    if isinstance(given, dict):
        return _bind(model, Batch((), dict(given)), index), ""
    if isinstance(given, Tensor):
        return _bind(model, Batch((given,)), index), ""
    if not isinstance(given, (tuple, list)):
        if tensors_in(getattr(given, "__dict__", {})) or hasattr(given, "keys"):
            return _bind(model, Batch((), {k: given[k] for k in given.keys()}), index), ""  # noqa: SIM118 - mapping-like
        raise DataError(
            f"batch {index} is {type(given).__name__}; expected a tensor, a tuple of arguments or a dict of keyword "
            "arguments; convert it with batch_process_func"
        )
    args = tuple(given)
    for length in range(len(args), 0, -1):
        if _binds(model, Batch(args[:length])):
            note = ""
            if length < len(args):
                note = (
                    f"each batch holds {len(args)} values, the forward takes {length}: the rest (labels?) was dropped"
                )
            elif filled := _optional_filled(model, length):
                note = (
                    f"values of each batch went to the optional arguments {', '.join(filled)} of forward; if "
                    f"these are labels, "
                    "drop them with batch_process_func=lambda batch: batch[0]"
                )
            return Batch(args[:length]), note
    return _bind(model, Batch(args), index), ""


def _optional_filled(model: nn.Module, length: int) -> list[str]:
    """Names of the forward's optional parameters that `length` positional values reach."""
    parameters = list(inspect.signature(model.forward).parameters.values())[:length]
    return [p.name for p in parameters if p.default is not inspect.Parameter.empty]


def require_same_flags(batches: Sequence[Batch]) -> None:
    """All batches must agree in the arguments that hold no tensor: a traced model holds one value of each.

    Raises:
        DataError: a batch has another None, flag or number than the first.
    """
    first = _flags(batches[0])
    for index, batch in enumerate(batches):
        flags = _flags(batch)
        if not _equal(flags, first):
            raise DataError(
                f"batch {index} has the arguments {flags} where batch 0 has {first}; expected the same in all batches "
                "(only tensors may differ): profile each kind of batch on its own"
            )


def _flags(batch: Batch) -> dict[str, Any]:
    given = {**{str(i): value for i, value in enumerate(batch.args)}, **batch.kwargs}
    return {name: value for name, value in given.items() if not tensors_in(value)}


def _equal(given: Any, first: Any) -> bool:
    """Whether two nests of plain values are equal; arrays, whose `==` is no single answer, by what they print."""
    try:
        return bool(given == first)
    except (ValueError, TypeError, RuntimeError):
        return repr(given) == repr(first)


def fingerprint(batches: Iterable[Batch]) -> str:
    """SHA-256 of all tensors of the batches."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in tensors_in([batch.args, batch.kwargs]):
            update_digest(digest, tensor)
    return digest.hexdigest()


def update_digest(digest: Any, tensor: Tensor) -> None:
    """Feed a tensor's dtype, shape and bytes to a digest."""
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().cpu().reshape(-1))
    digest.update(flat.view(torch.uint8).numpy().tobytes())


def _iterate(data: Any) -> Iterable[Any]:
    if isinstance(data, (Tensor, dict)) or (
        data and isinstance(data, tuple) and all(isinstance(d, Tensor) for d in data)
    ):
        return [data]
    if hasattr(data, "keys") and not isinstance(data, Iterable):
        return [data]
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise DataError(
            f"data is {type(data).__name__}; expected one batch (tensor, tuple, dict) or an iterable of batches"
        )
    return data


def _binds(model: nn.Module, batch: Batch) -> bool:
    try:
        inspect.signature(model.forward).bind(*batch.args, **batch.kwargs)
    except TypeError:
        return False
    return True


def _bind(model: nn.Module, batch: Batch, index: int) -> Batch:
    try:
        signature = inspect.signature(model.forward)
        signature.bind(*batch.args, **batch.kwargs)
    except TypeError as error:
        raise DataError(
            f"batch {index} ({batch.shapes}) does not fit {type(model).__name__}.forward{signature}: {error}; "
            "reshape it with batch_process_func"
        ) from None
    return batch


def _check_values(batch: Batch, index: int) -> None:
    tensors = tensors_in([batch.args, batch.kwargs])
    if not tensors:
        raise DataError(f"batch {index} holds no tensor; expected a tensor, a tuple of arguments or a dict")
    for position, tensor in enumerate(tensors):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"batch {index}, tensor {position} {tuple(tensor.shape)}: {count} values are NaN or Inf; clean "
                f"the data first"
            )
        if tensor.numel() == 0:
            raise DataError(f"batch {index}, tensor {position} has shape {tuple(tensor.shape)} and holds no values")


def to_device(batch: Batch, model: nn.Module) -> Batch:
    """The batch on the device of the model's parameters, or of its buffers where it has none."""
    parameter = next(iter(model.parameters()), next(iter(model.buffers()), None))
    if parameter is None:
        return batch
    device = parameter.device
    args, kwargs = tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, (batch.args, batch.kwargs))
    return Batch(args, kwargs)


def _clone(value: Any) -> Any:
    return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, value)
