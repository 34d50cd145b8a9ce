"""The place of a weighted op that is fused with an add further down: it hands its input on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.errors import UnsupportedOpError
from profiler.quant.eager.running import FQN_ATTRIBUTE
from profiler.quant.modules import Identity
from profiler.quant.ops.gemm import Gemm


class Deferred(Tensor):
    """A product that is not computed yet: the op at the add does it.

    Any other reader, on a path that was not recorded, gets the product itself in real values.

    Attributes:
        operand: what the weighted op was given.
        home: path of the fused op.
        fused: the fused op.
        value: the product, or what an in-place function made of it, once it is known.
    """

    operand: Tensor
    home: str
    fused: Any
    value: Tensor | None

    @staticmethod
    def of(operand: Tensor, home: str, fused: Gemm) -> Deferred:
        """The product of `operand`, put off."""
        with torch._C.DisableTorchFunction():
            deferred = operand.as_subclass(Tensor).as_subclass(Deferred)
        deferred.operand, deferred.home, deferred.fused, deferred.value = operand, home, fused, None
        return deferred

    def resolve(self) -> Tensor:
        """The product, computed now."""
        if self.value is None:
            self.value = self.fused.float_product(self.operand)
        return self.value

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """A function that reads it computes the product first."""
        return func(*resolved(args), **resolved(kwargs or {}))


class DeferredProduct(Identity):
    """Stands where the weighted op was.

    Args:
        home: path of the fused op, from the root of the model.
    """

    def __init__(self, home: str) -> None:
        super().__init__()
        self.home = home

    def extra_repr(self) -> str:
        return f"computed at {self.home}"


def resolved(value: Any) -> Any:
    """A nest with the products that were put off computed."""
    if isinstance(value, tuple) and not any(isinstance(v, (Deferred, tuple, list, dict)) for v in value):
        return value  # most calls; what comes now takes longer than a small op
    return tree_map(lambda v: v.resolve() if isinstance(v, Deferred) else v, value)


def is_fused_add(module: Any) -> bool:
    """Whether a module stands for an add and the weighted op before it."""
    return isinstance(module, Gemm) and module.epilogue.has_add


def is_fused_elsewhere(module: nn.Module | None, args: Any) -> bool:
    """Whether a fused add is called without its product: on this path the add is an add."""
    return is_fused_add(module) and not any(isinstance(a, Deferred) and a.fused is module for a in args)


def operands_of_fused_add(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """(input of the weighted op, the other operand), whatever their order in the code."""
    given = [*args, *kwargs.values()]
    own = next((i for i, a in enumerate(given) if isinstance(a, Deferred) and a.fused is module), None)
    if own is None or len(given) != 2:
        raise UnsupportedOpError(
            f"{module.__dict__[FQN_ATTRIBUTE]}: this add is fused with a weighted op, which did not run before it on "
            "this path; prepare with an example input that takes this path too"
        )
    return (given[own].operand, given[1 - own]), {}
