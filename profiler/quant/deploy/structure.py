"""Inputs and outputs of a model as flat lists of named tensors, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, DataError


def bind_inputs(
    model: nn.Module, example_inputs: Any, keyword_inputs: dict[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of `model.forward`: a tensor, a tuple or list of inputs, a dict by name.

    With `keyword_inputs` these go in by name; `example_inputs` may be None then.

    Raises:
        DataError: there is no tensor in it.
        ConfigError: an input without a default is missing, or there are inputs that forward does not take.
    """
    is_by_name = bool(keyword_inputs) and not _tensors(example_inputs)
    args, kwargs = (tuple(example_inputs or ()), {}) if is_by_name else _bound(model, example_inputs)
    kwargs = {**kwargs, **(keyword_inputs or {})}
    signature = _signature(model)
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(
                f"example_inputs: {error}; {type(model).__name__}.forward takes {signature}, pass a tuple or a dict of "
                "its parameters"
            ) from error
    return args, kwargs


@contextmanager
def explained_inputs(model: nn.Module, example_inputs: Any) -> Iterator[None]:
    """Run the model inside: a dict that went in whole, as no key names a parameter, is told if it cannot be read.

    Raises:
        ConfigError: the forward failed on such a dict.
    """
    try:
        yield
    except (AttributeError, TypeError) as error:
        names = _parameters(model)
        if not isinstance(example_inputs, dict) or names is None or set(example_inputs) <= set(names):
            raise
        raise ConfigError(
            f"example_inputs: the keys {', '.join(map(repr, example_inputs))} are not the parameters of forward "
            f"({', '.join(names)}), and the model failed on the dict itself: {error}"
        ) from error


def _bound(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not _tensors(example_inputs):
        raise DataError(f"example_inputs: got {type(example_inputs).__name__} without a tensor; pass forward's inputs")
    if isinstance(example_inputs, dict):
        names = _parameters(model)
        found = [key in names for key in example_inputs] if names else [True]
        is_by_name = all(found) or (any(found) and len(names or ()) > 1)  # a lone parameter may take a dict
        return ((), dict(example_inputs)) if is_by_name else ((example_inputs,), {})
    if isinstance(example_inputs, (tuple, list)) and not hasattr(example_inputs, "_fields"):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def _parameters(model: nn.Module) -> list[str] | None:
    signature = _signature(model)
    return None if signature is None else [name for name in signature.parameters if name != "self"]


def _signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None


def input_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """A name for each tensor of the arguments, from forward's parameters: `x`, `boxes_0`, `boxes_1`, `d_key`."""
    parameters = [p for p in _parameters(model) or [] if p not in ("args", "kwargs")]
    names: list[str] = []
    for i, arg in enumerate(args):
        names += _names_in(arg, parameters[i] if i < len(parameters) else f"input_{i}")
    for key, value in kwargs.items():
        names += _names_in(value, key)
    return names


def _names_in(value: Any, name: str) -> list[str]:
    if isinstance(value, Tensor):
        return [name]
    if isinstance(value, dict):
        return [n for key, item in value.items() for n in _names_in(item, f"{name}_{key}")]
    if isinstance(value, (tuple, list)):
        return [n for i, item in enumerate(value) for n in _names_in(item, f"{name}_{i}")]
    return []


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same nest of tuples, lists and dicts with every tensor replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, function) for item in value]
        if hasattr(value, "_make"):
            return value._make(items)
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def flat_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors of the arguments, in the order of their names."""
    return _tensors([list(args), list(kwargs.values())])


def describe_output(value: Any, tensors: list[Tensor], names: list[str], name: str = "output") -> Any:
    """JSON form of an output's structure; its tensors and their names are appended to the lists.

    Raises:
        DataError: there is something else than tensors, numbers, strings and nests of them.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        names.append(name)
        return {"tensor": len(tensors) - 1}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if isinstance(value, dict):
        prefix = "" if name == "output" else f"{name}_"
        items = [[key, describe_output(item, tensors, names, f"{prefix}{key}")] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, (tuple, list)):
        fields: Sequence[str] = getattr(value, "_fields", [f"{name}_{i}" for i in range(len(value))])
        nested = [describe_output(item, tensors, names, field) for item, field in zip(value, fields, strict=True)]
        return {"tuple" if isinstance(value, tuple) else "list": nested}
    if hasattr(value, "__dataclass_fields__"):
        return describe_output({k: getattr(value, k) for k in value.__dataclass_fields__}, tensors, names, name)
    raise DataError(f"{name}: a {type(value).__name__} in the model's output cannot be exported; return tensors")


def rebuild_output(spec: Any, tensors: Sequence[Any]) -> Any:
    """An output from its JSON form and its tensors; a named tuple comes back as a tuple, a dataclass as a dict."""
    ((kind, content),) = spec.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    if kind == "dict":
        return {key: rebuild_output(item, tensors) for key, item in content}
    items = [rebuild_output(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def plain_values(spec: Any, name: str = "output") -> dict[str, Any]:
    """Path of each leaf in the JSON form of an output, `output["n"][0]`: its value, or None for a tensor."""
    ((kind, content),) = spec.items()
    if kind in ("tensor", "value"):
        return {name: content if kind == "value" else None}
    items = content if kind == "dict" else list(enumerate(content))
    return {path: leaf for key, item in items for path, leaf in plain_values(item, f"{name}[{key!r}]").items()}


def on_cpu(value: Any) -> Any:
    """Copies of all tensors, contiguous, on the CPU and outside autograd."""
    return map_tensors(value, lambda t: t.detach().to("cpu").clone(memory_format=torch.contiguous_format))
