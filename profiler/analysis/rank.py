"""One root cause, one headline: findings at one op collapse, and the list is ordered by what matters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from profiler.analysis.context import Context
from profiler.records import SEVERITY_ORDER, Finding

_FAMILIES = ("ST", "IO", "SH", "FU", "IN", "RS", "HP", "QC", "RG", "SE", "CA")


def rank(findings: Iterable[Finding], context: Context) -> tuple[Finding, ...]:
    """Headlines, most severe first, then by expected gain at the outputs, then in forward order.

    Of several findings at one op the most severe stays (ties: state, structure, configuration, numbers, sensitivity);
    the others become its `related` lines.
    """
    position = {layer.op_name: layer.index for layer in reversed(context.layers)}
    groups: dict[str, list[Finding]] = {}
    for number, finding in enumerate(findings):
        key = finding.op if finding.op and not finding.id.startswith("ST") else f"#{number}"
        groups.setdefault(key, []).append(finding)
    headlines = [_collapse(group) for group in groups.values()]
    return tuple(sorted(headlines, key=lambda f: (*_order(f), position.get(f.op, -1), f.id)))


def _collapse(group: list[Finding]) -> Finding:
    first, *others = sorted(group, key=lambda f: (SEVERITY_ORDER.index(f.severity), _family(f)))
    lines = tuple(f"{f.id} {f.severity}: {f.title}" for f in others)
    return replace(first, related=(*first.related, *lines)) if lines else first


def _order(finding: Finding) -> tuple[int, float]:
    gain = finding.expected_gain_db if finding.expected_gain_db is not None else -math.inf
    return SEVERITY_ORDER.index(finding.severity), -gain


def _family(finding: Finding) -> int:
    prefix = finding.id[:2]
    return _FAMILIES.index(prefix) if prefix in _FAMILIES else len(_FAMILIES)
