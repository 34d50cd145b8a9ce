"""OpSpec: one record per operator, read by fusion, both front ends, conversion and the coverage table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from profiler.errors import RegistryError
from profiler.quant.qconfig import QConfig


class Family(Enum):
    """How an operator treats scales."""

    GEMM = "weighted: int8 weights, int32 accumulator, own output scale"
    FUNCTION = "own output scale"
    SCALE_KEEPING = "output scale = input scale"
    COMPOSITE = "several products and functions inside, each with its own scale"
    TABLE = "rows of a quantized table, picked by indices; output scale = the table's"
    INDEX = "results are booleans or indices, not quantized values"
    STUB = "boundary between float and integers"


@dataclass(frozen=True)
class OpSpec:
    """One operator in all its forms.

    Attributes:
        name: operator name, also the name of its test file.
        family: how it treats scales.
        functions: canonical names of the torch functions that are this operator.
        modules: float module classes that are this operator.
        float_fn: the function on plain tensors (FUNCTION family).
        integer_fn: `(out, *args, **kwargs) -> QTensor` on QTensors that hold codes (FUNCTION family).
        bind: keyword arguments of `float_fn` that a float module stands for (FUNCTION family).
        fake_quant: `(float module, qconfig) -> fake-quant module` (GEMM, STUB, COMPOSITE); the result has
            `to_integer()`.
        function_form: `(module to be placed like, function, bound, label, qconfig) -> fake-quant module` of a function
            that has quantizers inside (COMPOSITE); the result has `to_integer()`.
        keeps_scale: `(args, kwargs) -> bool`: which calls keep the scale of their operand instead of having an own one;
            args hold tensors, or the nodes of a graph, and `float_fn` takes quantized values in such calls (FUNCTION).
        high_precision_fn: as `integer_fn` without `out`, where the output stays unquantized: real values from exact
            integers; `float_fn` on real values where it is None (FUNCTION).
        fused: class of the fused float form, which can take a batch norm, an add and an activation (GEMM).
        norms: batch norm classes that can be folded into it (GEMM).
        fake_quant_output: `(fake quant, result of float_fn, *args, **kwargs) -> quantized result`, where that is
            more than rounding (FUNCTION).
        saturates: Inf and NaN of `float_fn` go to the end of the output range and to 0, unobserved (FUNCTION).
        plain_arguments: (position, name) of tensor arguments that are never quantized: masks (COMPOSITE),
            parameters (FUNCTION).
        refusal: `(float module) -> reason` why this one stays in float, or "".
        note: one line for the documentation.
    """

    name: str
    family: Family
    functions: tuple[str, ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    float_fn: Callable[..., Any] | None = None
    integer_fn: Callable[..., Any] | None = None
    bind: Callable[[Any], dict[str, Any]] | None = None
    fake_quant: Callable[[Any, QConfig], nn.Module] | None = None
    function_form: Callable[[nn.Module, str, dict[str, Any], str, QConfig], nn.Module] | None = None
    keeps_scale: Callable[[Any, dict[str, Any]], bool] | None = None
    high_precision_fn: Callable[..., Any] | None = None
    fused: type[nn.Module] | None = None
    norms: tuple[type[nn.Module], ...] = ()
    fake_quant_output: Callable[..., Any] | None = None
    saturates: bool = False
    plain_arguments: tuple[tuple[int, str], ...] = ()
    refusal: Callable[[Any], str] | None = None
    note: str = ""


_SPECS: dict[str, OpSpec] = {}
_BY_FUNCTION: dict[str, OpSpec] = {}
_BY_MODULE: dict[type[nn.Module], OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    """Add an operator.

    Raises:
        RegistryError: its name, a function or a module class is already taken.
    """
    taken = [n for n in spec.functions if n in _BY_FUNCTION] + [m.__name__ for m in spec.modules if m in _BY_MODULE]
    if spec.name in _SPECS or taken:
        raise RegistryError(f"operator {spec.name!r} is registered twice, or takes {taken} of another operator")
    _SPECS[spec.name] = spec
    _BY_FUNCTION.update(dict.fromkeys(spec.functions, spec))
    _BY_MODULE.update(dict.fromkeys(spec.modules, spec))
    return spec


def get_spec(name: str) -> OpSpec:
    """Operator by name.

    Raises:
        RegistryError: no operator has this name; the message lists them.
    """
    if name not in _SPECS:
        raise RegistryError(f"operator {name!r} is not registered; there are {', '.join(sorted(_SPECS))}")
    return _SPECS[name]


def all_specs() -> tuple[OpSpec, ...]:
    """Every operator, by name."""
    return tuple(_SPECS[name] for name in sorted(_SPECS))


def spec_of_function(name: str) -> OpSpec | None:
    """Operator of a canonical function name, or None where it runs in float."""
    return _BY_FUNCTION.get(name)


def spec_of_class(cls: type) -> OpSpec | None:
    """Operator registered for exactly this class, or None."""
    return _BY_MODULE.get(cls)


def spec_of_module(module: nn.Module) -> OpSpec | None:
    """Operator of a float module, or None. Subclasses count only where they do not override `forward`.

    A parametrized module (weight norm, say) computes its weight anew in each forward: it has no quantized form. Nor
    has one that its operator refuses.
    """
    return None if refusal_of(module) else _spec_of_kind(module)


def refusal_of(module: nn.Module) -> str:
    """Why an operator's float module with these arguments stays in float all the same, or ""."""
    spec = _spec_of_kind(module)
    return spec.refusal(module) if spec is not None and spec.refusal is not None else ""


def _spec_of_kind(module: nn.Module) -> OpSpec | None:
    cls = type(module)
    if is_parametrized(module):
        return None
    if cls in _BY_MODULE:
        return _BY_MODULE[cls]
    if cls.__name__ in ("QuantStub", "DeQuantStub") and cls.__module__.startswith("torch."):
        return _SPECS["quant_stub" if cls.__name__ == "QuantStub" else "dequant_stub"]
    for base in cls.__mro__[1:]:
        if base in _BY_MODULE:
            return _BY_MODULE[base] if cls.forward is base.forward else None
    return None
