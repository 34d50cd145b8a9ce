"""Exponential, logarithm, roots, trigonometry and rounding as tables."""

from __future__ import annotations

import torch

from profiler.quant.ops.lookup import register_table

_POLE = "Inf saturates to the end of the range, NaN is 0"

EXP = register_table("exp", torch.exp, saturates=True)
EXP2 = register_table("exp2", torch.exp2, "special_exp2", saturates=True)
EXPM1 = register_table("expm1", torch.expm1, "special_expm1", saturates=True)
LOG = register_table("log", torch.log, saturates=True, note=_POLE)
LOG2 = register_table("log2", torch.log2, saturates=True, note=_POLE)
LOG10 = register_table("log10", torch.log10, saturates=True, note=_POLE)
LOG1P = register_table("log1p", torch.log1p, "special_log1p", saturates=True, note=_POLE)
SQRT = register_table("sqrt", torch.sqrt, saturates=True, note="0 for negative values")
RSQRT = register_table("rsqrt", torch.rsqrt, saturates=True, note=_POLE)
RECIPROCAL = register_table("reciprocal", torch.reciprocal, saturates=True, note=_POLE)
SQUARE = register_table("square", torch.square, saturates=True)
ERF = register_table("erf", torch.erf, "special_erf")
ERFC = register_table("erfc", torch.erfc, "special_erfc")
SIN = register_table("sin", torch.sin)
COS = register_table("cos", torch.cos)
TAN = register_table("tan", torch.tan, saturates=True)
ASIN = register_table("asin", torch.asin, "arcsin", saturates=True, note="0 outside -1..1")
ACOS = register_table("acos", torch.acos, "arccos", saturates=True, note="0 outside -1..1")
ATAN = register_table("atan", torch.atan, "arctan")
SINH = register_table("sinh", torch.sinh, saturates=True)
COSH = register_table("cosh", torch.cosh, saturates=True)
ASINH = register_table("asinh", torch.asinh, "arcsinh")
ACOSH = register_table("acosh", torch.acosh, "arccosh", saturates=True, note="0 below 1")
ATANH = register_table("atanh", torch.atanh, "arctanh", saturates=True, note=_POLE)
FLOOR = register_table("floor", torch.floor)
CEIL = register_table("ceil", torch.ceil)
TRUNC = register_table("trunc", torch.trunc, "fix")
ROUND = register_table("round", torch.round, "special_round", note="half to even; decimals")
