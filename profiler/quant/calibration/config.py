"""What weight_reconstruction can be told in its custom_config_dict."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from profiler.errors import ConfigError


@dataclass(frozen=True)
class ReconstructionConfig:
    """Settings of weight_reconstruction.

    Attributes:
        num_batches: batches to take of a loader.
        num_steps: steps per op; batch size * steps of about 10,000 to 20,000 is usual.
        exclude_prefix: paths or op names; what they begin with keeps nearest rounding.
        warm_up: share of the steps (0..1) without regularization.
        weight: factor of the regularization that pulls each weight to one of its two codes.
        b_range: its sharpness after the warm-up and at the end.
        learning_rate: of Adam.
        seed: of the order of the batches.

    Raises:
        ConfigError: a value is out of its range.
    """

    num_batches: int = 10
    num_steps: int = 100
    exclude_prefix: tuple[str, ...] = ()
    warm_up: float = 0.2
    weight: float = 0.01
    b_range: tuple[float, float] = (20.0, 2.0)
    learning_rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "num_batches": self.num_batches >= 1,
            "num_steps": self.num_steps >= 1,
            "warm_up": 0 <= self.warm_up <= 1,
            "weight": self.weight >= 0,
            "b_range": [*sorted(self.b_range, reverse=True)][:2] == [*self.b_range] and min(self.b_range) > 0,
            "learning_rate": self.learning_rate > 0,
        }
        wrong = [f"{name}={getattr(self, name)!r}" for name, is_right in checks.items() if not is_right]
        if wrong:
            raise ConfigError(
                f"weight_reconstruction: {', '.join(wrong)}; expected num_batches, num_steps >= 1, warm_up in 0..1, "
                "weight >= 0, b_range [start, end] with start >= end > 0, learning_rate > 0"
            )

    @staticmethod
    def of(given: dict[str, Any] | None) -> ReconstructionConfig:
        """From the user's dict.

        Raises:
            ConfigError: a key is unknown, or a value cannot be used.
        """
        given = dict(given or {})
        legal = [field.name for field in fields(ReconstructionConfig)]
        unknown = [key for key in given if key not in legal]
        if unknown:
            raise ConfigError(
                f"weight_reconstruction: custom_config_dict has {', '.join(map(repr, unknown))}; the keys are "
                f"{', '.join(legal)}"
            )
        for name in ("exclude_prefix", "b_range"):
            if name in given:
                given[name] = (given[name],) if isinstance(given[name], str) else tuple(given[name])
        try:
            return ReconstructionConfig(**given)
        except TypeError as error:
            raise ConfigError(f"weight_reconstruction: custom_config_dict {given}: {error}") from error
