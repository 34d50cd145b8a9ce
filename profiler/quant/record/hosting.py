"""Containers that get quantizers beside their own children go on iterating over their own."""

from __future__ import annotations

from typing import Any

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLAIN = frozenset(_CONTAINERS)
_OWN = "quant_own_children"
_READS = "__iter__ __len__ __getitem__ __contains__ keys values items".split()


def own_children(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names of the children of each container of a float model, by path."""
    return {path: tuple(m._modules) for path, m in model.named_modules() if isinstance(m, _CONTAINERS)}


def hide_added(model: nn.Module, own: dict[str, tuple[str, ...]]) -> None:
    """Let containers that have, or may get, modules besides their own hide these from their code, in place.

    Args:
        model: prepared model.
        own: what `own_children` gave for the float one.
    """
    for path, names in own.items():
        module = model.get_submodule(path)
        may_get_more = not path or type(module) not in _PLAIN
        if may_get_more or set(module._modules) - set(names):
            module.__dict__[_OWN] = names
            module.__class__ = _hiding(type(module))


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _hiding(cls: type[nn.Module]) -> type[nn.Module]:
    """A class that reads as `cls` does, of its own children only; copies and pickles name `cls`."""
    if cls in _CLASSES:
        return _CLASSES[cls]
    reads = {name: _on_own(cls, name) for name in _READS if hasattr(cls, name)}
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    _CLASSES[cls] = type(cls.__name__, (cls,), {**reads, **names, "__reduce_ex__": _reduce})
    return _CLASSES[cls]


def _on_own(cls: type[nn.Module], name: str) -> Any:
    def read(self: nn.Module, *args: Any) -> Any:
        view = cls.__new__(cls)
        own = {n: m for n, m in self._modules.items() if n in self.__dict__[_OWN]}
        view.__dict__ = {**self.__dict__, "_modules": own}
        return getattr(cls, name)(view, *args)

    return read


def _reduce(self: nn.Module, protocol: Any) -> Any:
    return _new, (type(self).__bases__[0],), self.__dict__


def _new(cls: type[nn.Module]) -> nn.Module:
    hiding = _hiding(cls)
    return hiding.__new__(hiding)
