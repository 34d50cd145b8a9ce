"""The deployment target: which dtypes and ops it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from profiler.errors import ConfigError


class March(str, Enum):
    """Target families; the values are the strings that `set_march` takes too."""

    BERNOULLI = "bernoulli"
    BERNOULLI2 = "bernoulli2"
    BAYES = "bayes"
    BAYES_E = "bayes-e"
    NASH_E = "nash-e"
    NASH_M = "nash-m"
    NASH_B = "nash-b"
    NASH_P = "nash-p"
    NASH_H = "nash-h"

    @property
    def has_int16_activations(self) -> bool:
        """Whether activations may be int16 on this target."""
        return self not in (March.BERNOULLI, March.BERNOULLI2)


_current: March | None = None


def parse_march(march: March | str) -> March:
    """March of a name.

    Raises:
        ConfigError: the name is not a known march; the message lists them.
    """
    try:
        return march if isinstance(march, March) else March(march.lower().replace("_", "-"))
    except (ValueError, AttributeError):
        names = ", ".join(m.value for m in March)
        raise ConfigError(f"march {march!r} is unknown; use one of {names}") from None


def set_march(march: March | str) -> None:
    """Choose the target for every following prepare, convert and check."""
    global _current
    _current = parse_march(march)


def get_march() -> March | None:
    """The target chosen last, or None."""
    return _current


def march_or_default(march: March | str | None) -> March:
    """The march given, else the one that is set, else BAYES.

    Raises:
        ConfigError: the name is unknown; the message lists the known ones.
    """
    return parse_march(march) if march is not None else get_march() or March.BAYES


@contextmanager
def march_set_to(march: March) -> Iterator[None]:
    """The target inside a with block; the former one, or none, comes back, also after an error."""
    global _current
    former = _current
    _current = march
    try:
        yield
    finally:
        _current = former


def require_march() -> March:
    """The target, for calls that cannot do without.

    Raises:
        ConfigError: `set_march` was never called.
    """
    if _current is None:
        raise ConfigError("no march is set; call set_march(March.BAYES) (or another target) before prepare")
    return _current
