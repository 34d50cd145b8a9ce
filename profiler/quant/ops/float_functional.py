"""FloatFunctional: arithmetic as a module, in float."""

from __future__ import annotations

from typing import Any

from profiler.errors import UnsupportedOpError
from profiler.quant.modules import QuantOp
from profiler.quant.ops.registry import Family, OpSpec, spec_of_function


class FloatFunctional(QuantOp):
    """Arithmetic as a module, so that its output can be quantized. One instance per call site."""

    def forward(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Run one function by name; use the methods instead."""
        float_fn = spec_of_method(function).float_fn
        assert float_fn is not None  # an operator with an own scale has one
        return float_fn(*args, **kwargs)

    def add(self, x: Any, y: Any) -> Any:
        """`x + y` with broadcasting."""
        return self("add", x, y)

    def add_scalar(self, x: Any, y: float) -> Any:
        """`x + y` for a number."""
        return self("add", x, y)

    def add_relu(self, x: Any, y: Any) -> Any:
        """`relu(x + y)` with broadcasting."""
        return self("add_relu", x, y)

    def sub(self, x: Any, y: Any) -> Any:
        """`x - y` with broadcasting."""
        return self("sub", x, y)

    def mul(self, x: Any, y: Any) -> Any:
        """`x * y` with broadcasting."""
        return self("mul", x, y)

    def mul_scalar(self, x: Any, y: float) -> Any:
        """`x * y` for a number."""
        return self("mul", x, y)

    def div(self, x: Any, y: Any) -> Any:
        """`x / y` with broadcasting."""
        return self("div", x, y)

    def maximum(self, x: Any, y: Any) -> Any:
        """The larger of both, elementwise."""
        return self("maximum", x, y)

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller of both, elementwise."""
        return self("minimum", x, y)

    def matmul(self, x: Any, y: Any) -> Any:
        """`x @ y`."""
        return self("matmul", x, y)

    def cat(self, x: Any, dim: int = 0) -> Any:
        """Join along `dim`."""
        return self("cat", x, dim=dim)

    def stack(self, x: Any, dim: int = 0) -> Any:
        """Join along a new dimension `dim`."""
        return self("stack", x, dim=dim)

    def mean(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Mean over dims."""
        return self("mean", x, *args, **kwargs)

    def sum(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Sum over dims."""
        return self("sum", x, *args, **kwargs)


def spec_of_method(function: str) -> OpSpec:
    """Operator of a FloatFunctional's method.

    Raises:
        UnsupportedOpError: it has no quantized form.
    """
    spec = spec_of_function(function)
    if spec is None or spec.family is not Family.FUNCTION:
        raise UnsupportedOpError(f"FloatFunctional.{function} has no quantized form; set qconfig = None on it")
    return spec
