"""The table of emitters: how each aten operator is written in ONNX, and the tools that they write with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from profiler.errors import RegistryError, UnsupportedOpError
from profiler.quant.deploy.graph import GraphBuilder, Value, constant

Emitter = Callable[..., Any]
_E = TypeVar("_E", bound=Emitter)
_EMITTERS: dict[str, Emitter] = {}
# Operators whose result has the shape that their operands have together.
_ELEMENTWISE = frozenset(
    "Add Sub Mul Div Mod Max Min Clip Where Relu Less LessOrEqual Greater GreaterOrEqual Equal And Or Xor Not Abs Neg "
    "Sign Sqrt Exp Log Tanh Sigmoid Erf Round Floor Ceil Pow Reciprocal Softmax".split()
)


def emits(*names: str) -> Callable[[_E], _E]:
    """Register the emitter of aten operators, by packet and overload without `aten.`: `mul.Tensor`, `relu.default`.

    An emitter gets an `Emission` and the operator's own arguments with values in the place of tensors; it returns the
    value of the result, or a tuple of values (None: this result has no ONNX form).
    """

    def register(emitter: _E) -> _E:
        for name in names:
            if name in _EMITTERS:
                raise RegistryError(f"aten.{name} has two emitters")
            _EMITTERS[name] = emitter
        return emitter

    return register


def emitter_of(name: str) -> Emitter | None:
    """Emitter of an aten operator (`mul.Tensor`), or None."""
    return _EMITTERS.get(name)


def emitter_names() -> tuple[str, ...]:
    """Every aten operator that has an emitter."""
    return tuple(sorted(_EMITTERS))


class Emission:
    """One aten call on its way into the graph.

    Args:
        builder: the graph.
        result: what the call really gave; its shapes and dtypes are those to reach.
        run: the aten operator itself.
    """

    def __init__(self, builder: GraphBuilder, result: Any, run: Callable[..., Any]) -> None:
        self.builder, self.result, self.run = builder, result, run

    @property
    def out(self) -> Tensor:
        """The (first) real result."""
        first: Tensor = self.result if isinstance(self.result, Tensor) else self.result[0]
        return first

    def node(self, op: str, *inputs: Value | None, **kwargs: Any) -> Value:
        """Append a node; see `GraphBuilder.node`. Elementwise ones have a known shape."""
        value = self.builder.node(op, *inputs, **kwargs)
        shapes = [v.shape for v in inputs if v is not None]
        if op not in _ELEMENTWISE or None in shapes:
            return value
        return replace(value, shape=broadcast(*[s for s in shapes if s is not None]))

    def nodes_of(
        self, op: str, *inputs: Value | None, dtypes: Sequence[torch.dtype], **attributes: Any
    ) -> tuple[Value, ...]:
        """Append a node with several outputs."""
        return self.builder.nodes_of(op, *inputs, dtypes=dtypes, **attributes)

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """The value in another dtype."""
        return self.builder.cast(value, dtype)

    def like(self, operand: Any, dtype: torch.dtype) -> Value:
        """A value or number in a dtype."""
        return self.cast(operand, dtype) if isinstance(operand, Value) else constant(operand, dtype)

    def binary(self, op: str, x: Any, y: Any, dtype: torch.dtype | None = None) -> Value:
        """A node of two operands in one dtype (the first value's by default)."""
        kind = dtype or next(v.dtype for v in (x, y) if isinstance(v, Value))
        return self.node(op, self.like(x, kind), self.like(y, kind))

    def compare(self, op: str, x: Any, y: Any, dtype: torch.dtype | None = None) -> Value:
        """A comparison of two operands in one dtype."""
        kind = dtype or next(v.dtype for v in (x, y) if isinstance(v, Value))
        return self.node(op, self.like(x, kind), self.like(y, kind), dtype=torch.bool)

    def where(self, condition: Value, x: Any, y: Any, dtype: torch.dtype) -> Value:
        """`condition ? x : y`."""
        condition = self.cast(condition, torch.bool)
        return self.node("Where", condition, self.like(x, dtype), self.like(y, dtype), dtype=dtype)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape."""
        if x.constant is not None:
            return replace(constant(x.constant.reshape(list(shape))), codes=x.codes)
        if x.shape is not None and -1 in shape:
            rest = math.prod(n for n in shape if n != -1)
            shape = [math.prod(x.shape) // max(rest, 1) if n == -1 else n for n in shape]
        if x.shape == tuple(shape):
            return x
        value = self.node("Reshape", x, constant(list(shape), torch.int64))
        return replace(value, shape=None if -1 in shape else tuple(shape), codes=x.codes)

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """Permuted dimensions."""
        if x.constant is not None:
            return replace(constant(x.constant.permute(list(order))), codes=x.codes)
        value = self.node("Transpose", x, perm=list(order))
        shape = None if x.shape is None else tuple(x.shape[d] for d in order)
        return replace(value, shape=shape, codes=x.codes)

    def gather(self, x: Value, positions: Tensor | Value, axis: int) -> Value:
        """Elements along an axis."""
        index = positions if isinstance(positions, Value) else constant(positions)
        return replace(self.node("Gather", x, index, axis=axis), codes=x.codes)

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """Broadcast to a shape."""
        if x.shape == tuple(shape):
            return x
        value = self.node("Expand", x, constant(list(shape), torch.int64))
        return replace(value, shape=tuple(shape), codes=x.codes)

    def reduce(self, op: str, x: Value, dims: Sequence[int] | None, keepdim: bool = False) -> Value:
        """A reduction over some (all, if None or empty) dimensions."""
        shape = shape_of(x)
        over = {d % max(len(shape), 1) for d in dims} if dims else set(range(len(shape)))
        axes = constant(sorted(over), torch.int64)
        value = self.node(op, x, axes if over else None, keepdims=int(keepdim))
        kept = [1 if d in over else n for d, n in enumerate(shape) if keepdim or d not in over]
        return replace(value, shape=tuple(kept))


def shape_of(value: Value) -> tuple[int, ...]:
    """Shape of a value that has one: every operand of an aten operator."""
    if value.shape is None:
        raise UnsupportedOpError(f"the shape of {value.name} is not known")
    return value.shape


def known(value: Value | None, what: str) -> Tensor:
    """Contents of an operand that must not depend on the model's inputs.

    Raises:
        UnsupportedOpError: it depends on them.
    """
    if value is None or value.constant is None:
        raise UnsupportedOpError(f"{what} depends on the model's inputs, which cannot be exported; make it a constant")
    return value.constant


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that tensors of these shapes have together."""
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
