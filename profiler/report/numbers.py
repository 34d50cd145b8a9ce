"""Numbers as text, rounded so that the text never claims more than the value holds."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Literal

Good = Literal["up", "down", ""]

_ROUNDING = {"up": ROUND_FLOOR, "down": ROUND_CEILING, "": ROUND_HALF_EVEN}


def decimals(value: float, places: int, good: Good = "") -> str:
    """Gives `value` with a fixed number of decimals.

    Args:
        value: the number.
        places: decimals after the point.
        good: which way is good; the text is rounded the other way. "" rounds half to even.

    Returns:
        The text; "nan", "inf" and "-inf" for those; a non-zero value never prints as zero (but in exponent form).

    >>> decimals(0.99996, 4, "up"), decimals(2e-9, 7), decimals(0.0, 3)
    ('0.9999', '2.0e-09', '0.000')
    """
    if not math.isfinite(value):
        return _non_finite(value)
    rounded = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-places), rounding=_ROUNDING[good])
    if value != 0 and rounded == 0:
        return f"{value:.1e}"
    return _no_negative_zero(f"{rounded:f}")


def significant(value: float, digits: int = 4, good: Good = "") -> str:
    """Gives `value` with some significant digits, in exponent form below 1e-4 and from 1e7 on.

    Args:
        value: the number.
        digits: significant digits to keep.
        good: which way is good; the text is rounded the other way.

    Returns:
        The text; "nan", "inf" and "-inf" for those.

    >>> significant(0.99996, 4, "up"), significant(5.0001, 4, "down"), significant(123456.0), significant(3.2e-9)
    ('0.9999', '5.001', '123500', '3.200e-09')
    """
    if not math.isfinite(value):
        return _non_finite(value)
    if value == 0:
        return "0"
    exact = Decimal(repr(float(value)))
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=_ROUNDING[good])
    if 1e-4 <= abs(value) < 1e7:
        return f"{rounded:f}"
    return f"{float(rounded):.{digits - 1}e}"


def _non_finite(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _no_negative_zero(text: str) -> str:
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text
