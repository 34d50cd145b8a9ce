"""Wrapped code in a traced graph: a module that runs a method's Python on the children that it calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any

from torch import fx, nn

from profiler.quant.eager.prepare import follow_part
from profiler.quant.naming import op_name
from profiler.quant.ops.registry import Family, spec_of_module
from profiler.quant.swap import QuantEffect
from profiler.quant.wrapping import code_of, is_wrapped_class

# Names by which code reaches children that it does not name.
_REACHES_ALL = frozenset(
    "getattr children modules named_children named_modules get_submodule _modules __dict__ vars eval exec "
    "__getattr__ parameters named_parameters buffers state_dict".split()
)
# Marks modules that wrapped code calls: fusion leaves them alone.
KEPT = "quant_kept_for_wrapped_code"
_TABLES = ("_parameters", "_buffers", "_modules")


class Wrapped(nn.Module):
    """Runs wrapped code; its children are those that the code names, the very objects of the module they belong to.

    The method runs on a twin of that module which has only these children: what prepare and convert put in their place
    here is what the code calls.

    Args:
        run: the wrapped function.
        owner: the module whose method it is, or None.
    """

    host: nn.Module | None

    def __init__(self, run: Callable[..., Any], owner: nn.Module | None) -> None:
        super().__init__()
        self.run = run
        self.__dict__["host"] = None
        if owner is not None:
            self.__dict__["host"] = self._twin(owner)
            self.training = owner.training

    def _twin(self, owner: nn.Module) -> nn.Module:
        names = _reached(type(owner), self.run)
        twin = type(owner).__new__(type(owner))
        twin.__dict__.update(owner.__dict__)
        for table in _TABLES:
            given = owner.__dict__[table]
            own = {k: v for k, v in given.items() if names is None or k in names}
            self.__dict__[table] = twin.__dict__[table] = {k: v for k, v in own.items() if not isinstance(v, Wrapped)}
        twin.__dict__["_non_persistent_buffers_set"] = owner._non_persistent_buffers_set & set(self._buffers)
        self.__dict__["_non_persistent_buffers_set"] = owner._non_persistent_buffers_set & set(self._buffers)
        return twin

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped code gives."""
        if self.host is None:
            return code_of(self.run).run(args, kwargs)
        self.host.__dict__["training"] = self.training
        return code_of(self.run).run((self.host, *args), kwargs)

    def extra_repr(self) -> str:
        return code_of(self.run).function.__qualname__


def register_wrapped(model: nn.Module, calls: dict[str, tuple[Callable[..., Any], nn.Module | None]]) -> None:
    """Put a `Wrapped` at each path where tracing met wrapped code."""
    for path, (run, owner) in calls.items():
        parent, _, name = path.rpartition(".")
        if name not in model.get_submodule(parent)._modules:
            model.get_submodule(parent).add_module(name, Wrapped(run, owner))
            for module in model.get_submodule(path).modules():
                module.__dict__[KEPT] = True


def unregister_wrapped(model: nn.Module, calls: Iterable[str]) -> None:
    """Take away what `register_wrapped` put in."""
    for path in calls:
        parent, _, name = path.rpartition(".")
        host = model.get_submodule(parent)._modules.pop(name, None)
        for module in host.modules() if host is not None else ():
            module.__dict__.pop(KEPT, None)


def is_wrapped(module: nn.Module) -> bool:
    """Whether a module of a traced graph runs wrapped code."""
    return isinstance(module, Wrapped) or is_wrapped_class(module)


def is_followed(module: nn.Module) -> bool:
    """Whether wrapped code calls ops that are quantized, so that quantized values may enter it."""
    found = (spec_of_module(m) for m in module.modules() if m is not module)
    return any(spec is not None and spec.family in (Family.GEMM, Family.COMPOSITE, Family.FUNCTION) for spec in found)


def wrapped_targets(root: nn.Module, graph: fx.Graph) -> list[str]:
    """Paths of the modules of a graph that run wrapped code."""
    targets = {str(n.target): None for n in graph.nodes if n.op == "call_module"}
    return [target for target in targets if is_wrapped(root.get_submodule(target))]


def prepare_wrapped(root: nn.Module, graph: fx.Graph) -> list[QuantEffect]:
    """Prepare what wrapped code calls, as in the eager flow; after the ops of the graph are in their fake-quant form.

    Returns:
        What became of its ops; code that calls none is named, as it runs in float.
    """
    effects: list[QuantEffect] = []
    for target in wrapped_targets(root, graph):
        host = root.get_submodule(target)
        if not is_followed(host):
            reason = "wrapped code that calls no op with a quantized form: gets and gives real values"
            effects.append(QuantEffect(op_name(target), "", "torch.float32", reason))
            continue
        owner = root.get_submodule(target.rpartition(".")[0])
        _copy_children(owner, host)  # what the graph calls as well has its fake-quant form already
        follow_part(host, target, effects)
        _copy_children(host, owner)
    return effects


def _copy_children(source: nn.Module, target: nn.Module) -> None:
    """Children that both have under one name become those of the source."""
    if isinstance(source, Wrapped) or isinstance(target, Wrapped):
        for name in source._modules.keys() & target._modules.keys():
            target._modules[name] = source._modules[name]


def _reached(cls: type, run: Callable[..., Any]) -> set[str] | None:
    """Names that a method's code uses, with those of other methods that it names; None: it may reach everything."""
    names: set[str] = set()
    open_functions = [code_of(run).function]
    while open_functions:
        for code in _codes(open_functions.pop().__code__):
            for name in set(code.co_names) - names:
                names.add(name)
                open_functions += _functions(cls, name)
            if _REACHES_ALL & set(code.co_names):
                return None
    return names


def _functions(cls: type, name: str) -> Iterator[Any]:
    """The methods of a class, and of its bases, that have a name."""
    for base in cls.__mro__:
        found = vars(base).get(name) if base is not nn.Module else None
        found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        if inspect.isfunction(found):
            yield inspect.unwrap(found)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
