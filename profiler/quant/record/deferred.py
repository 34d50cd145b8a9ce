"""The place of a weighted op that is fused with an add further down: it hands its input on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

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
