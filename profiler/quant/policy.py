"""What happens on a fake-quant state that gives a silently wrong result: an error, or only a warning."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from profiler.errors import ConfigError, ProfilerError

_LOGGER = logging.getLogger(__name__)
_POLICIES = ("error", "warn")
_policy = "error"


def set_state_policy(policy: str) -> None:
    """Choose "error" (default) or "warn", which goes on with scale 1.

    Raises:
        ConfigError: any other value.
    """
    global _policy
    if policy not in _POLICIES:
        raise ConfigError(f"state policy {policy!r} is unknown; use one of {', '.join(_POLICIES)}")
    _policy = policy


@contextmanager
def state_policy(policy: str) -> Iterator[None]:
    """The policy inside a with block, "ignore" among them; the former one comes back, also after an error."""
    global _policy
    former = _policy
    if policy == "ignore":
        _policy = policy
    else:
        set_state_policy(policy)
    try:
        yield
    finally:
        _policy = former


def complain(error: type[ProfilerError], message: str) -> None:
    """Raise the error, log it, or say nothing, as the policy says."""
    if _policy == "error":
        raise error(message)
    if _policy == "warn":
        _LOGGER.warning(message)
