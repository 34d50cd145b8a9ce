"""Puts the parts of a run together: comparisons, findings, verdict, surroundings."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from datetime import datetime, timezone

import torch
from torch import nn

from profiler import __version__
from profiler.analysis.context import Context
from profiler.analysis.findings import run_rules
from profiler.analysis.rank import rank
from profiler.analysis.summary import verdict
from profiler.api.options import Options
from profiler.metrics.registry import all_metrics
from profiler.profile_report import ProfileReport
from profiler.quant.batches import Batch, fingerprint, update_digest
from profiler.quant.states import journal_of
from profiler.quant.swap import EFFECTS_ATTRIBUTE
from profiler.records import Comparison, Effect, ReportData, StageMetric, StateRecord


def write_run(
    model: nn.Module,
    comparisons: Sequence[Comparison],
    options: Options,
    *,
    batches: Sequence[Batch],
    prepared: nn.Module,
    state: StateRecord | None = None,
    stage_metrics: Sequence[StageMetric] = (),
    notes: Sequence[str] = (),
) -> ProfileReport:
    """Explain the comparisons and write the report."""
    effects = effects_of(prepared)
    context = Context(comparisons[0], state)
    findings = rank(run_rules(context), context)
    journal = journal_of(prepared)
    data = ReportData(
        title=type(model).__name__,
        verdict=verdict(comparisons, findings, stage_metrics, missing=_missing(notes, effects)),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        findings=findings,
        comparisons=tuple(comparisons),
        metrics=all_metrics(),
        stage_metrics=tuple(stage_metrics),
        effects=effects,
        state=state,
        journal=journal.lines() if journal is not None else (),
        versions=versions(),
        arguments=options.arguments(),
        fingerprints={
            "inputs": fingerprint(batches),
            "weights": weights_digest(model),
            "threads": str(torch.get_num_threads()),
        },
        notes=tuple(n for n in notes if n),
    )
    options.tell("write the report", 0, 1)
    report = ProfileReport.write(data, options.out_dir, make_zip=options.make_zip)
    options.tell("write the report", 1, 1)
    return report


def _missing(notes: Sequence[str], effects: Sequence[Effect]) -> str:
    """What was not quantized or not converted, in a few words for the verdict."""
    num_float = sum(e.actual == "torch.float32" and bool(e.reason) and e.requested != "None" for e in effects)
    parts = [f"{num_float} op{'s' if num_float > 1 else ''} stayed in float (see QConfig)"] if num_float else []
    parts += [f"no integer model could be made ({note})" for note in notes if note.startswith("not converted")]
    return "; ".join(parts)


def effects_of(prepared: nn.Module) -> tuple[Effect, ...]:
    """What each qconfig entry did, as records."""
    effects = getattr(prepared, EFFECTS_ATTRIBUTE, ())
    return tuple(Effect(e.op, e.requested, e.actual, e.reason) for e in effects)


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {"quant-profiler": __version__, "torch": torch.__version__, "python": platform.python_version()}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda item: item[0]):
        digest.update(name.encode())
        update_digest(digest, tensor)
    return digest.hexdigest()
