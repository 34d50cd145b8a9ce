"""How near a model is to what simple targets compute: power-of-two scales for activations, then for weights."""

from __future__ import annotations

from profiler.errors import ConfigError

_level = 0


class ConsistencyStrategy:
    """Chosen before prepare. 0: scales from statistics; 1: activation scales are powers of two; 2: weights' too.

    Scales are rounded up, also fixed ones, so nothing is clipped that was not before; only the scale that a QuantStub
    was given stays, as its data were made for it. Models of levels 1 and 2 are to be retrained.
    """

    @staticmethod
    def set_consistency_level(level: int) -> None:
        """Choose the level for every following prepare.

        Raises:
            ConfigError: the level is none of 0, 1, 2.
        """
        global _level
        if level not in (0, 1, 2):
            raise ConfigError(f"consistency level {level!r} is unknown; use 0 (statistics), 1 (activations) or 2")
        _level = level

    @staticmethod
    def get_consistency_level() -> int:
        """The level chosen last, 0 at first."""
        return _level
