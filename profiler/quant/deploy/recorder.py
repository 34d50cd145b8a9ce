"""Records one forward, aten call by aten call, as an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from profiler.errors import UnsupportedOpError
from profiler.quant.deploy.aliasing import TensorValues
from profiler.quant.deploy.aten import emitter_of
from profiler.quant.deploy.emitters import Emission, Emitter
from profiler.quant.deploy.graph import GraphBuilder
from profiler.quant.qtensor import user_line

# Results that depend on shapes alone: constants, whatever tensor they are made like.
_SHAPE_ONLY = frozenset(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided "
    "sym_size sym_stride".split()
)
_PYTHON_VALUES = frozenset({"_local_scalar_dense.default", "is_nonzero.default", "equal.default"})


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every aten call on a traced tensor as ONNX nodes; calls on other tensors give constants.

    Args:
        builder: the graph that grows.
        scope: says which op is running; it begins the names of the nodes.
        source: says which line of the user's code is running.

    Attributes:
        reads: op and line of every Python value that was read from a traced tensor (`if x.sum() > 0:`, `x.item()`).
    """

    def __init__(
        self, builder: GraphBuilder, scope: Callable[[], str] = lambda: "", source: Callable[[], str] = user_line
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder, self.scope, self.source = builder, scope, source
        self.values = TensorValues(builder)
        self.reads: list[str] = []
        self._paused = 0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Nothing is recorded inside."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the call; record it if a traced tensor goes in."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            if self._paused or not self._reads_traced(args, kwargs):
                return func(*args, **kwargs)
            self.builder.scope = self.scope()
            try:
                return self._record(func, args, kwargs)
            except UnsupportedOpError as error:
                if getattr(error, "is_located", False):
                    raise
                raise self._located(func, error) from error

    def _reads_traced(self, args: Any, kwargs: dict[str, Any]) -> bool:
        leaves = tree_flatten((args, kwargs))[0]
        return any(isinstance(leaf, Tensor) and self.values.is_traced(leaf) for leaf in leaves)

    def _record(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = str(func).removeprefix("aten.")
        packet = name.partition(".")[0]
        if name in _PYTHON_VALUES:
            self.reads.append(f"{self.scope() or 'the model'}, {self.source()}")
            return func(*args, **kwargs)
        if packet in _SHAPE_ONLY or (_is_view(func) and self.values.is_formless(args[0])):
            return func(*args, **kwargs)
        if packet in ("copy_", "zero_", "fill_"):
            return self._overwrite(func, packet, args, kwargs)
        if "out" in kwargs:
            return self._into_out(func, args, kwargs)
        emitter = emitter_of(name)
        if emitter is not None:
            return self._emit(emitter, func, args, kwargs)
        if packet.endswith("_") and not packet.startswith("__"):
            return self._in_place(func, packet, args, kwargs)
        return self._without_emitter(func, args, kwargs)

    def _emit(self, emitter: Emitter, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        def value_of(leaf: Any) -> Any:
            return self.values.value(leaf) if isinstance(leaf, Tensor) else leaf

        value_args, value_kwargs = tree_map(value_of, (tuple(args), kwargs))
        result = func(*args, **kwargs)
        emitted = emitter(Emission(self.builder, result, func), *value_args, **value_kwargs)
        self._bind(result, emitted)
        return result

    def _bind(self, result: Any, emitted: Any) -> None:
        if isinstance(result, Tensor):
            self.values.bind(result, emitted)
            return
        for tensor, value in zip(result, emitted, strict=True):
            if isinstance(tensor, Tensor):
                self.values.bind(tensor, value)

    def _overwrite(self, func: Any, packet: str, args: Any, kwargs: dict[str, Any]) -> Any:
        target = args[0]
        source = 0 if packet == "zero_" else args[1]
        self.values.adopt(target)
        emission = Emission(self.builder, target, func)
        operand: Any = self.values.value(source) if isinstance(source, Tensor) else source
        value = emission.expand(emission.like(operand, target.dtype), target.shape)
        result = func(*args, **kwargs)
        self.values.write(target, value)
        return result

    def _in_place(self, func: Any, packet: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """`x.op_(...)` as `x.copy_(x.op(...))`."""
        functional = getattr(torch.ops.aten, packet[:-1], None)
        overload = func._overloadname
        if functional is None or overload not in functional.overloads():
            return self._without_emitter(func, args, kwargs)
        with self:
            result = getattr(functional, overload)(*args, **kwargs)
            return torch.ops.aten.copy_.default(args[0], result)

    def _into_out(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """`op(..., out=y)` as `y.copy_(op(...))`."""
        others = {key: value for key, value in kwargs.items() if key != "out"}
        wanted = [a.name for a in func._schema.arguments if a.name != "out"]
        packet = func._overloadpacket
        for name in packet.overloads():
            overload = getattr(packet, name)
            if [a.name for a in overload._schema.arguments] == wanted:
                with self:
                    return torch.ops.aten.copy_.default(kwargs["out"], overload(*args, **others))
        return self._without_emitter(func, args, kwargs)

    def _without_emitter(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Views become gathers; the rest is taken apart by torch's own decompositions."""
        if _is_view(func):
            result = func(*args, **kwargs)
            for tensor in tree_flatten(result)[0]:
                if isinstance(tensor, Tensor) and tensor.numel():
                    self.values.value(tensor)
            return result
        decomposition = _decompositions().get(func)
        if decomposition is not None:
            with self:
                return decomposition(*args, **kwargs)
        with self:
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise UnsupportedOpError(
                "has no ONNX form; run this part outside the exported model, or write it with other operators"
            )
        return result

    def _located(self, func: Any, error: UnsupportedOpError) -> UnsupportedOpError:
        where = self.scope() or "the model"
        located = UnsupportedOpError(f"{where}: {func}, called at {self.source()}: {error}")
        located.is_located = True  # type: ignore[attr-defined]
        return located


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


_TABLE: dict[Any, Any] = {}


def _decompositions() -> dict[Any, Any]:
    if not _TABLE:
        from torch._decomp import core_aten_decompositions

        _TABLE.update(core_aten_decompositions())
    return _TABLE
