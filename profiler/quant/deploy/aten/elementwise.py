"""Arithmetic, comparisons, rounding and casts, element by element."""

from __future__ import annotations

from typing import Any

import torch

from profiler.errors import UnsupportedOpError
from profiler.quant.deploy.emitters import Emission, emits, known
from profiler.quant.deploy.graph import Value, constant

_UNARY = {
    "ceil": "Ceil", "floor": "Floor", "round": "Round", "sqrt": "Sqrt", "exp": "Exp", "log": "Log", "tanh": "Tanh",
    "sigmoid": "Sigmoid", "erf": "Erf", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos",
    "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "abs": "Abs",
    "neg": "Neg", "sign": "Sign", "reciprocal": "Reciprocal",
}  # fmt: skip
_ROUNDING = frozenset({"ceil", "floor", "round", "trunc"})
# float32 only in ONNX Runtime
_SINGLE = frozenset("Erf Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh".split())
_COMPARISONS = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}


def _register_unary(name: str, op: str) -> None:
    @emits(f"{name}.default")
    def emit(g: Emission, x: Value) -> Value:
        """One ONNX node; rounding leaves integers alone."""
        if name in _ROUNDING and not x.dtype.is_floating_point:
            return x
        x = g.cast(x, g.out.dtype)
        if op in _SINGLE and x.dtype == torch.float64:
            return g.cast(g.node(op, g.cast(x, torch.float32)), torch.float64)
        value: Value = g.node(op, x)
        return value


def _register_comparison(name: str, op: str) -> None:
    @emits(f"{name}.Tensor", f"{name}.Scalar")
    def emit(g: Emission, x: Value, other: Any) -> Value:
        """Compare in the common dtype."""
        return g.compare(op, x, other, _common(x, other))


for _name, _op in _UNARY.items():
    _register_unary(_name, _op)
for _name, _op in _COMPARISONS.items():
    _register_comparison(_name, _op)


def _common(x: Any, other: Any) -> torch.dtype:
    """The dtype in which torch computes with two operands."""

    def stand_in(v: Any) -> Any:
        if not isinstance(v, Value):
            return v
        return torch.empty(() if v.shape == () else (1,), dtype=v.dtype)

    return torch.result_type(stand_in(x), stand_in(other))


@emits("ne.Tensor", "ne.Scalar")
def not_equal(g: Emission, x: Value, other: Any) -> Value:
    """Not equal."""
    return g.node("Not", g.compare("Equal", x, other, _common(x, other)))


@emits("mul.Tensor", "mul.Scalar")
def mul(g: Emission, x: Any, other: Any) -> Value:
    """Product in the dtype of the result."""
    return g.binary("Mul", x, other, g.out.dtype)


@emits("add.Tensor", "add.Scalar")
def add(g: Emission, x: Any, other: Any, alpha: Any = 1) -> Value:
    """`x + alpha * other`."""
    scaled = other if alpha == 1 else g.binary("Mul", g.like(other, g.out.dtype), alpha)
    return g.binary("Add", x, scaled, g.out.dtype)


@emits("sub.Tensor", "sub.Scalar")
def sub(g: Emission, x: Any, other: Any, alpha: Any = 1) -> Value:
    """`x - alpha * other`."""
    scaled = other if alpha == 1 else g.binary("Mul", g.like(other, g.out.dtype), alpha)
    return g.binary("Sub", x, scaled, g.out.dtype)


@emits("rsub.Scalar")
def rsub(g: Emission, x: Any, other: Any, alpha: Any = 1) -> Value:
    """`other - alpha * x`."""
    return sub(g, other, x, alpha)


@emits("div.Tensor", "div.Scalar")
def div(g: Emission, x: Any, other: Any) -> Value:
    """True division."""
    return g.binary("Div", x, other, g.out.dtype)


@emits("div.Tensor_mode")
def div_mode(g: Emission, x: Any, other: Any, rounding_mode: str | None = None) -> Value:
    """Division that rounds down or towards zero."""
    if rounding_mode is None:
        return div(g, x, other)
    dtype = g.out.dtype
    if rounding_mode == "floor":
        return floor_divide(g, x, other)
    quotient = g.binary("Div", x, other, dtype)
    return trunc(g, quotient) if dtype.is_floating_point else quotient


@emits("floor_divide.default")
def floor_divide(g: Emission, x: Any, other: Any) -> Value:
    """Division that rounds down; in float by torch's own way, which corrects the remainder."""
    dtype = g.out.dtype
    x, other = g.like(x, dtype), g.like(other, dtype)
    if not dtype.is_floating_point:
        return g.binary("Div", g.binary("Sub", x, g.node("Mod", x, other)), other)
    rest = g.node("Mod", x, other, fmod=1)
    quotient = g.binary("Div", g.binary("Sub", x, rest), other)
    quotient = g.where(_other_side(g, rest, other), g.binary("Sub", quotient, 1), quotient, dtype)
    down = g.node("Floor", quotient)
    is_short = g.compare("Greater", g.binary("Sub", quotient, down), 0.5)
    return g.where(is_short, g.binary("Add", down, 1), down, dtype)


@emits("remainder.Tensor", "remainder.Scalar")
def remainder(g: Emission, x: Any, other: Any) -> Value:
    """Remainder with the sign of the divisor."""
    dtype = g.out.dtype
    x, other = g.like(x, dtype), g.like(other, dtype)
    if not dtype.is_floating_point:
        return g.node("Mod", x, other)
    rest = g.node("Mod", x, other, fmod=1)
    return g.where(_other_side(g, rest, other), g.binary("Add", rest, other), rest, dtype)


def _other_side(g: Emission, rest: Value, other: Value) -> Value:
    """Whether a remainder is not 0 and has another sign than the divisor."""
    signs = g.node("Xor", g.compare("Less", rest, 0), g.compare("Less", other, 0))
    return g.node("And", signs, g.node("Not", g.compare("Equal", rest, 0)))


@emits("fmod.Tensor", "fmod.Scalar")
def fmod(g: Emission, x: Any, other: Any) -> Value:
    """Remainder with the sign of the dividend."""
    dtype = g.out.dtype
    return g.node("Mod", g.like(x, dtype), g.like(other, dtype), fmod=1)


@emits("trunc.default")
def trunc(g: Emission, x: Value) -> Value:
    """Towards zero."""
    if not x.dtype.is_floating_point:
        return x
    return g.where(g.compare("Less", x, 0), g.node("Ceil", x), g.node("Floor", x), x.dtype)


@emits("round.decimals")
def round_decimals(g: Emission, x: Value, decimals: int = 0) -> Value:
    """Round to decimal places."""
    power = 10.0**decimals
    return g.binary("Div", g.node("Round", g.binary("Mul", x, power)), power)


@emits("rsqrt.default")
def rsqrt(g: Emission, x: Value) -> Value:
    """`1 / sqrt(x)`, two rounded operations."""
    x = g.cast(x, g.out.dtype)
    return g.binary("Div", 1.0, g.node("Sqrt", x), x.dtype)


@emits("log2.default")
def log2(g: Emission, x: Value) -> Value:
    """Logarithm to base 2."""
    return g.binary("Div", g.node("Log", g.cast(x, g.out.dtype)), 0.6931471805599453)


@emits("log10.default")
def log10(g: Emission, x: Value) -> Value:
    """Logarithm to base 10."""
    return g.binary("Div", g.node("Log", g.cast(x, g.out.dtype)), 2.302585092994046)


@emits("log1p.default")
def log1p(g: Emission, x: Value) -> Value:
    """`log(1 + x)`."""
    wide = g.cast(g.cast(x, g.out.dtype), torch.float64)
    return g.cast(g.node("Log", g.binary("Add", wide, 1.0)), g.out.dtype)


@emits("expm1.default")
def expm1(g: Emission, x: Value) -> Value:
    """`exp(x) - 1`."""
    wide = g.cast(g.cast(x, g.out.dtype), torch.float64)
    return g.cast(g.binary("Sub", g.node("Exp", wide), 1.0), g.out.dtype)


@emits("exp2.default")
def exp2(g: Emission, x: Value) -> Value:
    """Power of 2."""
    return g.binary("Pow", 2.0, g.cast(x, g.out.dtype), g.out.dtype)


@emits("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def power(g: Emission, x: Any, exponent: Any) -> Value:
    """Power; small whole exponents as products and roots, as torch does."""
    dtype = g.out.dtype
    base = g.like(x, dtype)
    if isinstance(exponent, Value):
        return g.binary("Pow", base, g.cast(exponent, dtype))
    if exponent in (2, 3):
        square = g.binary("Mul", base, base)
        return square if exponent == 2 else g.binary("Mul", square, base)
    if exponent == 0.5:
        return g.node("Sqrt", base)
    if exponent in (-0.5, -1, -2):
        root = g.node("Sqrt", base) if exponent == -0.5 else base
        return g.binary("Div", 1.0, g.binary("Mul", base, base) if exponent == -2 else root, dtype)
    return g.binary("Pow", base, exponent)


@emits("atan2.default")
def atan2(g: Emission, y: Value, x: Value) -> Value:
    """Angle of a point, by quadrant."""
    dtype = g.out.dtype
    angle = g.cast(g.node("Atan", g.cast(g.binary("Div", y, x, dtype), torch.float32)), dtype)
    pi = 3.141592653589793
    half_turn = g.where(g.compare("Less", y, 0), -pi, pi, dtype)
    turned = g.where(g.compare("Less", x, 0), g.binary("Add", angle, half_turn), angle, dtype)
    upright = g.binary("Mul", g.cast(g.node("Sign", y), dtype), pi / 2)
    return g.where(g.compare("Equal", x, 0), upright, turned, dtype)


@emits("maximum.default")
def maximum(g: Emission, x: Value, other: Value) -> Value:
    """The larger."""
    return g.binary("Max", x, other, g.out.dtype)


@emits("minimum.default")
def minimum(g: Emission, x: Value, other: Value) -> Value:
    """The smaller."""
    return g.binary("Min", x, other, g.out.dtype)


@emits("clamp.default", "hardtanh.default")
def clamp(g: Emission, x: Value, min: Any = None, max: Any = None) -> Value:
    """Clamp to numbers."""
    if min is None and max is None and str(g.run) == "aten.hardtanh.default":
        min, max = -1.0, 1.0
    dtype = g.out.dtype
    bounds = [None if bound is None else constant(bound, dtype) for bound in (min, max)]
    return g.node("Clip", g.cast(x, dtype), *bounds)


@emits("clamp.Tensor")
def clamp_tensor(g: Emission, x: Value, min: Value | None = None, max: Value | None = None) -> Value:
    """Clamp to tensors."""
    value = g.cast(x, g.out.dtype)
    if min is not None:
        value = g.binary("Max", value, min)
    return value if max is None else g.binary("Min", value, max)


@emits("clamp_min.default", "clamp_min.Tensor")
def clamp_min(g: Emission, x: Value, min: Any) -> Value:
    """At least."""
    return g.binary("Max", x, min, g.out.dtype)


@emits("clamp_max.default", "clamp_max.Tensor")
def clamp_max(g: Emission, x: Value, max: Any) -> Value:
    """At most."""
    return g.binary("Min", x, max, g.out.dtype)


@emits("where.self")
def where(g: Emission, condition: Value, x: Any, other: Any) -> Value:
    """Choose by a condition."""
    return g.where(condition, x, other, g.out.dtype)


@emits("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(g: Emission, x: Value, mask: Value, value: Any) -> Value:
    """A value where the mask holds."""
    return g.expand(g.where(mask, value, x, g.out.dtype), g.out.shape)


def _register_logical(name: str, op: str) -> None:
    @emits(f"{name}.default")
    def emit(g: Emission, x: Value, other: Value) -> Value:
        """A logical operation on truth values."""
        return g.binary(op, x, other, torch.bool)


for _name, _op in {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}.items():
    _register_logical(_name, _op)


def _register_bitwise(name: str, op: str) -> None:
    @emits(f"{name}.Tensor", f"{name}.Scalar")
    def emit(g: Emission, x: Value, other: Any) -> Value:
        """A logical operation on truth values, a bitwise one on integers."""
        return g.binary(op if g.out.dtype == torch.bool else f"Bitwise{op}", x, other, g.out.dtype)


for _name, _op in {"bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor"}.items():
    _register_bitwise(_name, _op)


@emits("bitwise_left_shift.Tensor_Scalar", "bitwise_left_shift.Tensor", "__lshift__.Scalar", "__lshift__.Tensor")
def left_shift(g: Emission, x: Value, other: Any) -> Value:
    """Product with a power of two."""
    return g.binary("Mul", g.cast(x, g.out.dtype), _power_of_two(other, g.out.dtype))


@emits("bitwise_right_shift.Tensor_Scalar", "bitwise_right_shift.Tensor", "__rshift__.Scalar", "__rshift__.Tensor")
def right_shift(g: Emission, x: Value, other: Any) -> Value:
    """Quotient by a power of two, rounded down."""
    return floor_divide(g, g.cast(x, g.out.dtype), _power_of_two(other, g.out.dtype))


def _power_of_two(bits: Any, dtype: torch.dtype) -> Value:
    """Two to a known number of bits.

    Raises:
        UnsupportedOpError: the number depends on the inputs, or the power does not fit into the dtype.
    """
    number = known(bits, "a number of bits").long() if isinstance(bits, Value) else torch.tensor(bits)
    if int(number.max()) >= torch.iinfo(dtype).bits - 1:
        raise UnsupportedOpError(f"a shift of {dtype} by {int(number.max())} bits has no ONNX form; use a wider dtype")
    return constant(torch.ones_like(number) << number, dtype)


@emits("logical_not.default")
def logical_not(g: Emission, x: Value) -> Value:
    """Not."""
    return g.node("Not", g.cast(x, torch.bool))


@emits("bitwise_not.default")
def bitwise_not(g: Emission, x: Value) -> Value:
    """Not, or all bits inverted."""
    return g.node("Not" if x.dtype == torch.bool else "BitwiseNot", x)


@emits("isnan.default")
def isnan(g: Emission, x: Value) -> Value:
    """Whether not a number."""
    return g.node("IsNaN", x, dtype=torch.bool)


@emits("isinf.default")
def isinf(g: Emission, x: Value) -> Value:
    """Whether infinite."""
    return g.node("IsInf", g.cast(x, torch.float32), dtype=torch.bool)


@emits("_to_copy.default")
def to_copy(g: Emission, x: Value, **kwargs: Any) -> Value:
    """Another dtype; devices do not matter."""
    return g.cast(x, g.out.dtype)


@emits("clone.default", "detach.default", "alias.default")  # fmt: skip
def same(g: Emission, x: Value, *args: Any, **kwargs: Any) -> Value:
    """The same elements."""
    return g.reshape(x, g.out.shape)
