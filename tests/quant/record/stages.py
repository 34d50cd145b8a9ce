"""From a float network to its recorded, calibrated and converted stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from profiler.quant import QConfig, default_calib_8bit_fake_quant_qconfig
from profiler.quant.fx.planning import from_dicts
from profiler.quant.record.prepare import Run, prepare_recorded
from profiler.quant.swap import EFFECTS_ATTRIBUTE
from tests.quant.stages import calibrate

INT8 = default_calib_8bit_fake_quant_qconfig


def run_of(batch: Any) -> Run:
    """A dict holds keyword arguments, a tuple positional ones."""
    if isinstance(batch, dict):
        return (), batch
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def prepared(model: nn.Module, *batches: Any, qconfig: QConfig | None = INT8, **options: Any) -> Any:
    """Recorded model; each batch is one run of the record."""
    return prepare_recorded(model.eval(), [run_of(b) for b in batches], from_dicts({"": qconfig}), **options)


def calibrated(model: nn.Module, batches: Sequence[Any], num_runs: int = 1) -> Any:
    """Recorded from the first batches, calibrated on all, in VALIDATION."""
    return calibrate(prepared(model, *batches[:num_runs]), batches)


def reasons(model: nn.Module) -> dict[str, str]:
    """Op and why it runs in float, of those that do."""
    return {e.op: e.reason for e in getattr(model, EFFECTS_ATTRIBUTE) if e.actual == "torch.float32"}


def relative_error(expected: Tensor, found: Tensor) -> float:
    """Largest error in parts of the largest value."""
    return float((expected - found).detach().abs().max() / expected.detach().abs().max())


def rows(*shape: int, count: int = 3) -> list[Tensor]:
    """Seeded batches."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]
