"""What happened to a prepared model: states set, batches observed, whether training ran. Not saved with the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StateEvent:
    """One `set_fake_quantize` call, with the root's `training` flag at that time.

    Attributes:
        state: name of the state; of the function for calls on a part (`freeze_part`, `unfreeze_part`, `reset_part`).
        root_training: the flag.
        part: names of the part; empty for the whole model.
    """

    state: str
    root_training: bool
    part: str = ""

    def line(self) -> str:
        """The call as text."""
        call = f"{self.state}({self.part})" if self.part else f"set_fake_quantize({self.state})"
        return f"{call}, model.training = {self.root_training}"


@dataclass
class Journal:
    """One per prepared model, shared by its fake quants."""

    events: list[StateEvent] = field(default_factory=list)
    observed_calibration: Counter[str] = field(default_factory=Counter)
    observed_qat: Counter[str] = field(default_factory=Counter)
    has_backward_run: bool = False

    def count_observed(self, name: str, *, is_calibration: bool) -> None:
        """Note one observed batch of one fake quant."""
        (self.observed_calibration if is_calibration else self.observed_qat)[name] += 1

    @property
    def has_observed(self) -> bool:
        """Whether any batch was observed in this process."""
        return bool(self.observed_calibration or self.observed_qat)

    def watch_backward(self, y: Tensor) -> None:
        """Note when a backward pass reaches this tensor; does nothing once one ran."""
        if not self.has_backward_run:
            y.register_hook(self._mark_backward)  # type: ignore[no-untyped-call]

    def lines(self) -> tuple[str, ...]:
        """The journal as text, one event a line."""
        states = [event.line() for event in self.events]
        calib = max(self.observed_calibration.values(), default=0)
        qat = max(self.observed_qat.values(), default=0)
        counts = f"batches observed: {calib} in CALIBRATION, {qat} in QAT; backward pass: {self.has_backward_run}"
        return (*states, counts)

    def _mark_backward(self, grad: Any) -> None:
        self.has_backward_run = True
