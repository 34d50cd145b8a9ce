"""Elementwise functions as tables: one output code for every input code."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from profiler.quant.affine import QInfo, dequantize, quantize
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor
from profiler.quant.tracing import not_traced

Elementwise = Callable[..., Any]
_T = TypeVar("_T")


def table_codes(out: OutputQuant, x: QTensor, function: Callable[[Tensor], Tensor], key: Hashable) -> QTensor:
    """Codes of an elementwise function of codes.

    Args:
        out: output scale and dtype.
        x: codes, any shape.
        function: real function of a float64 tensor.
        key: names the function and its constants, for the cache.

    Returns:
        `table[x_q - quant_min]`; 256 entries for int8, 65536 for int16.
    """
    table = cached(out, (key, *key_of(x, out)), lambda: make_table(x, function, out.scale, out.info))
    return out.wrap(read_table(table, offsets(x)))


def offsets(x: QTensor) -> Tensor:
    """`x_q - quant_min` as int32: where each code stands in a table, same shape."""
    return x.plain.to(torch.int32) - x.info.quant_min


def read_table(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`, shape of the index."""
    return torch.index_select(table, 0, index.reshape(-1)).reshape(index.shape)


def make_table(x: QTensor, function: Callable[[Tensor], Tensor], out_scale: Tensor, info: QInfo) -> Tensor:
    """Output codes of every input code, in order.

    The function is evaluated in float64 at the real values that a fake-quant model passes on (float32), its result is
    rounded to float32 and quantized. +-Inf (1/0, log 0) saturates to the end of the code range; NaN (log -1) is 0.
    """
    with torch.no_grad():
        real = function(every_value(x).double()).to(torch.float32)
        return quantize(torch.where(torch.isnan(real), 0.0, real), out_scale, info)


def every_value(x: QTensor) -> Tensor:
    """Real values of all codes of x's dtype, in order, float32."""
    return dequantize(torch.arange(x.info.quant_min, x.info.quant_max + 1, device=x.plain.device), x.scale)


def cached(out: OutputQuant, key: Hashable, make: Callable[[], _T], most: int = 32) -> _T:
    """What `make` gives, once per key for this op, which keeps the `most` newest; constants for `torch.jit.trace`."""
    if key in out.cache:
        found: _T = out.cache[key]
        return found
    made = out.cache[key] = not_traced(make)()
    while len(out.cache) > most:
        out.cache.pop(next(iter(out.cache)), None)
    return made


@not_traced
def key_of(x: QTensor, out: OutputQuant) -> tuple[Any, ...]:
    """What a table depends on besides its function: scales, dtypes and device."""
    return (float(x.scale), x.qdtype, float(out.scale), out.info, str(x.plain.device))


def as_number(value: Any) -> Any:
    """A 0-d tensor as the number that it holds."""
    return value.item() if isinstance(value, Tensor) and value.dim() == 0 else value


class _FiniteGradient(torch.autograd.Function):
    """Identity whose backward turns Inf and NaN into 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same values."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Finite gradients only."""
        return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)


def finite_gradient(x: Any) -> Any:
    """x, with a gradient that is 0 where the function behind it has none (log, sqrt and 1/x at 0)."""
    return _FiniteGradient.apply(x) if isinstance(x, Tensor) else x  # type: ignore[no-untyped-call]


def register_table(
    name: str,
    function: Elementwise,
    *aliases: str,
    modules: tuple[type[nn.Module], ...] = (),
    constants: tuple[str, ...] = (),
    saturates: bool = False,
    note: str = "",
) -> OpSpec:
    """Register an elementwise function of one tensor and numbers.

    Args:
        name: of the operator, and canonical name of its torch function.
        function: `(tensor, *numbers, **numbers)` in float32 and float64.
        aliases: canonical names of other torch functions with the same arguments.
        modules: float classes that stand for it.
        constants: attributes of these modules that are keyword arguments of the function.
        saturates: it has poles or overflows: its Inf and NaN saturate, see OpSpec.
        note: for the documentation, after "table".
    """

    def float_fn(input: Any, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:
        return function(finite_gradient(input) if saturates else input, *args, **kwargs)

    def integer_fn(out: OutputQuant, input: QTensor, *args: Any, inplace: bool = False, **kwargs: Any) -> QTensor:
        numbers = [as_number(value) for value in args]
        named = {name: as_number(value) for name, value in kwargs.items()}
        key = (name, *numbers, *sorted(named.items()))
        return table_codes(out, input, lambda x: function(x, *numbers, **named), key)

    return register(
        OpSpec(name, Family.FUNCTION, functions=(name, *aliases), modules=modules, bind=attributes(*constants),
               float_fn=float_fn, integer_fn=integer_fn, saturates=saturates, note=f"table{note and '; '}{note}")
    )  # fmt: skip


def attributes(*names: str) -> Callable[[nn.Module], dict[str, Any]]:
    """`OpSpec.bind` of modules whose constants are attributes; `inplace` is honoured where the module has it."""

    def bind(module: nn.Module) -> dict[str, Any]:
        inplace = {"inplace": True} if getattr(module, "inplace", False) else {}
        return {**{name: getattr(module, name) for name in names}, **inplace}

    return bind
