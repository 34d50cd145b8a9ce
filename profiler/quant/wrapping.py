"""wrap and dynamic_block: code that tracing leaves alone, and blocks of code whose functions keep their names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_leaves

from profiler.errors import ConfigError, UnsupportedOpError
from profiler.quant.calls import named_block
from profiler.quant.naming import block_name
from profiler.quant.qtensor import to_float, user_line

_CODE = "__quant_wrapped__"
_LEAF = "__quant_wrapped_class__"
_SKIPPING: ContextVar[list[SkippedCall] | None] = ContextVar("skipped_calls", default=None)


@dataclass(frozen=True)
class WrappedCode:
    """A function or method under `wrap`.

    Attributes:
        function: what the user wrote.
        name: its name as a named block.
        skip_compile: it stays out of the exported file.
        is_forward: it is the forward of a wrapped class, whose own name tells it from other code.
    """

    function: Callable[..., Any]
    name: str
    skip_compile: bool
    is_forward: bool

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the code; a `SkippedCall` instead while a file is made of the model."""
        skipped = _SKIPPING.get()
        if self.skip_compile and skipped is not None:
            inputs = args[1:] if args and isinstance(args[0], nn.Module) else args
            skipped.append(SkippedCall(self.function.__qualname__, inputs, kwargs, user_line()))
            return skipped[-1]
        return self.function(*args, **kwargs)


class SkippedCall:
    """Stands for the result of a call that stays out of the exported file; it may only be returned by the model.

    Args:
        name: of the wrapped code.
        args: its positional arguments, without `self`.
        kwargs: its keyword arguments.
        source: line of the user's code that called it.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: str

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], source: str) -> None:
        self.__dict__.update(name=name, args=args, kwargs=kwargs, source=source)

    @property
    def inputs(self) -> Any:
        """What enters the code: the argument where there is one, else all of them."""
        values = [*self.args, *self.kwargs.values()]
        return values[0] if len(values) == 1 else tuple(values)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UnsupportedOpError(
            f"{self.name} is wrapped with skip_compile=True, so the file ends in front of it (called at "
            f"{self.source}), but the model goes on with its result at {user_line()}; return it as it is, or use wrap "
            "without skip_compile"
        )

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __float__ = __int__ = __call__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A torch function got the result."""
        given = [leaf for leaf in tree_leaves([args, kwargs or {}]) if isinstance(leaf, cls)]
        return given[0]._refuse()


@contextmanager
def skipping() -> Iterator[list[SkippedCall]]:
    """While a file is made: calls of code with skip_compile=True do not run, and are listed. Nested: one list."""
    found = _SKIPPING.get()
    if found is not None:
        yield found
        return
    found = []
    token = _SKIPPING.set(found)
    try:
        yield found
    finally:
        _SKIPPING.reset(token)


def without_skipped(value: Any) -> Any:
    """A model's output where the results of skipped calls are replaced by the real values that entered those calls."""
    if isinstance(value, SkippedCall):
        return to_float(value.inputs)
    if not _has_skipped(value):
        return value
    if isinstance(value, dict):
        return type(value)({key: without_skipped(item) for key, item in value.items()})
    if isinstance(value, (tuple, list)):
        items = [without_skipped(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def skipped_texts(calls: list[SkippedCall]) -> list[str]:
    """What to tell about skipped calls, each once."""
    return list(
        dict.fromkeys(
            f"{call.name} runs in Python only (wrap(skip_compile=True)): it stays out of the file, which gives what "
            f"enters it; called at {call.source}"
            for call in calls
        )
    )


def _has_skipped(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_skipped(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return any(_has_skipped(item) for item in value)
    return isinstance(value, SkippedCall)


def wrap(skip_compile: Any = False) -> Any:
    """Decorator: tracing leaves this code alone, and its Python runs in every stage.

    For what cannot be traced: post-processing, `if self.training`, numpy, branches on data.

    - A method of a module: its code is run; the modules that it calls are configured, replaced and converted like all
      others, and functions in it that get quantized values are quantized as in the eager flow. Where it calls no
      module of its own, it gets and gives real values.
    - A module class: the same for its whole forward.
    - A plain function: gets and gives real values.

    Ops in it are named `<fqn>.<name of the code>.<function>_<k>`. In the eager flow nothing else changes.

    Args:
        skip_compile: the code stays out of the exported file, which gives what enters it instead; check_model and
            compile_model say so. Its result may only be returned by the model.

    Returns:
        A decorator. `@wrap` without brackets works too.

    Raises:
        ConfigError: what is decorated is neither a function nor a module class.
    """
    if isinstance(skip_compile, bool):
        return lambda target: _decorated(target, skip_compile)
    return _decorated(skip_compile, False)


def _decorated(target: Any, skip_compile: bool) -> Any:
    if isinstance(target, staticmethod):
        return staticmethod(_decorated(target.__func__, skip_compile))
    if isinstance(target, type) and issubclass(target, nn.Module):
        code = WrappedCode(target.forward, "forward", skip_compile, is_forward=True)
        target.forward = _runner(code)
        setattr(target, _LEAF, True)
        return target
    if not inspect.isfunction(target):
        raise ConfigError(f"wrap got {target!r}; put @wrap() on a function, a method or a class of nn.Module")
    return _runner(WrappedCode(target, block_name(target.__name__), skip_compile, is_forward=False))


def _runner(code: WrappedCode) -> Callable[..., Any]:
    @functools.wraps(code.function)
    def run(*args: Any, **kwargs: Any) -> Any:
        call_wrapped = _tracer_method(args, kwargs)
        if call_wrapped is not None:
            return call_wrapped(run, args, kwargs)
        if code.is_forward:
            return code.run(args, kwargs)
        with named_block(code.name):
            return code.run(args, kwargs)

    setattr(run, _CODE, code)
    return run


def _tracer_method(args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """What the tracer that traces now does with wrapped code, or None where none of ours does."""
    proxy = next((leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, fx.Proxy)), None)
    return None if proxy is None else getattr(proxy.tracer, "call_wrapped", None)


def code_of(run: Callable[..., Any]) -> WrappedCode:
    """The code behind a wrapped function."""
    found: WrappedCode = getattr(run, _CODE)
    return found


def is_method(run: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a call of wrapped code is one of a method of the module that is its first argument."""
    if not args or not isinstance(args[0], nn.Module):
        return False
    return any(run is value for cls in type(args[0]).__mro__ for value in vars(cls).values())


def is_wrapped_class(module: nn.Module) -> bool:
    """Whether a module's class is under `wrap`."""
    return bool(getattr(type(module), _LEAF, False))


class Tracer:
    """What user code may say to whatever follows it."""

    @staticmethod
    @contextmanager
    def dynamic_block(module: nn.Module, name: Any) -> Iterator[None]:
        """A block of a forward that runs a changing number of times, or not at all.

        Functions in it are named `<fqn>.<name>.<function>_<k>`, k from 0 at each entry: each call site is one op with
        one scale, however often a loop runs. Put it around the body of the loop, or around a branch; never around the
        loop itself.

        Args:
            module: the module whose forward runs: `self`.
            name: name of the block; blocks of one name share their ops.

        Raises:
            ConfigError: the module is none, or the name is no identifier, holds "__" or is that of a child.
        """
        if not isinstance(module, nn.Module):
            raise ConfigError(f"dynamic_block got {type(module).__name__}; write Tracer.dynamic_block(self, {name!r})")
        if not isinstance(name, str) or not name.isidentifier() or block_name(name) != name:
            raise ConfigError(f"dynamic_block name {name!r}; expected an identifier without a double underscore")
        if name in module._modules:
            raise ConfigError(
                f"dynamic_block name {name!r} is that of a child of {type(module).__name__}; take another"
            )
        with named_block(name):
            yield
