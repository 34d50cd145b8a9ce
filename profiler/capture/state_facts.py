"""The fake-quant state of a prepared model as plain values, before anything runs."""

from __future__ import annotations

from torch import nn

from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.naming import op_name
from profiler.quant.qconfig import QConfig
from profiler.quant.states import journal_of, named_fake_quants
from profiler.records import StateRecord


def state_record(model: nn.Module) -> StateRecord | None:
    """State of a prepared model, or None for a model without fake quants."""
    activations = [(n, fq) for n, fq in named_fake_quants(model) if "weight_fake_quant" not in n]
    if not activations:
        return None
    journal = journal_of(model)
    purposes = {
        m.__dict__["qconfig"].purpose for m in model.modules() if isinstance(m.__dict__.get("qconfig"), QConfig)
    }
    free = [(n, fq) for n, fq in activations if not (fq.activation_post_process.is_fixed or fq.is_frozen)]
    return StateRecord(
        purpose=next(iter(purposes)) if len(purposes) == 1 else "",
        root_training=model.training,
        events=tuple((e.state, e.root_training) for e in journal.events if not e.part) if journal is not None else (),
        num_activations=len(free),
        uncalibrated=tuple(_owner(n) for n, fq in free if not fq.is_calibrated),
        num_fake_quant_on=_count(fq.is_fake_quant_on for _, fq in free),
        num_observer_on=_count(fq.is_observer_on for _, fq in free),
        num_training=_count(fq.training for _, fq in free),
        observed_calibration=_most(journal.observed_calibration, activations) if journal is not None else 0,
        observed_qat=_most(journal.observed_qat, activations) if journal is not None else 0,
        has_backward_run=journal.has_backward_run if journal is not None else False,
    )


def _owner(name: str) -> str:
    return op_name(name.removesuffix(".activation_post_process"))


def _count(flags: object) -> int:
    return sum(bool(flag) for flag in flags)  # type: ignore[attr-defined]


def _most(observed: dict[str, int], activations: list[tuple[str, FakeQuantize]]) -> int:
    return max((observed.get(name, 0) for name, _ in activations), default=0)
