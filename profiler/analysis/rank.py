"""One root cause, one headline: findings of one cause collapse, and the list is ordered by what matters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from profiler.analysis.context import Context, op_of
from profiler.analysis.findings.sensitivity import is_amplifier
from profiler.records import SEVERITY_ORDER, Finding

_FAMILIES = ("ST", "IO", "SH", "FU", "IN", "RS", "HP", "QC", "RG", "SE", "CA")
_SPOILING = ("ST1", "ST2", "ST3", "ST5")


def rank(findings: Iterable[Finding], context: Context) -> tuple[Finding, ...]:
    """Headlines, most severe first, then by expected gain at the outputs, then in forward order.

    Of several findings of one cause the most severe stays (ties: state, structure, configuration, numbers, then error);
    the others become its `related` lines. One cause are: findings at one op; at the ops of one unfused group or of one
    list of uncalibrated ops; an op that only amplifies the error of an input that has a finding of its own; and numbers
    that a wrong state has spoiled.
    """
    everything = list(findings)
    position = {layer.op_name: layer.index for layer in reversed(context.layers)}
    homes = _homes(everything)
    groups: dict[str, list[Finding]] = {}
    for number, finding in enumerate(everything):
        groups.setdefault(_key(number, finding, homes), []).append(finding)
    for key in [key for key, group in groups.items() if _is_sensitivity(group)]:
        source = _source_with_headline(groups[key][0], groups, homes, context)
        if source is not None:
            groups[source].extend(groups.pop(key))
    headlines = [_collapse(group) for group in _under_state(groups, context)]
    return tuple(sorted(headlines, key=lambda f: (*_order(f), position.get(f.op, -1), f.id)))


def _homes(findings: Sequence[Finding]) -> dict[str, str]:
    """Op -> op under whose headline its findings stand, for the members of groups."""
    homes: dict[str, str] = {}
    for finding in findings:
        if finding.id in ("FU1", "ST5") and finding.patch is not None:
            names = str(finding.patch.arguments.get("names", "")).split(",")
            for name in names:
                homes.setdefault(op_of(name), finding.op)
    return homes


def _key(number: int, finding: Finding, homes: dict[str, str]) -> str:
    return homes.get(finding.op, finding.op) if finding.op else f"#{number}"


def _is_sensitivity(group: Sequence[Finding]) -> bool:
    return all(finding.id.startswith("SE") for finding in group)


def _source_with_headline(
    finding: Finding, groups: dict[str, list[Finding]], homes: dict[str, str], context: Context
) -> str | None:
    """Key of the group at an input of an op that only amplifies that input's error, or None."""
    for layer in context.calls_of(finding.op):
        if not is_amplifier(layer):
            continue
        for source in context.sources(layer):
            key = homes.get(source.op_name, source.op_name)
            if any(f.severity != "I" for f in groups.get(key, ())) and not _is_sensitivity(groups[key]):
                return key
    return None


def _under_state(groups: dict[str, list[Finding]], context: Context) -> list[list[Finding]]:
    """Numbers measured without right scales stand under the state finding that spoiled them."""
    state = next((g for g in groups.values() if any(f.id in _SPOILING for f in g)), None)
    if state is None:
        return list(groups.values())
    spoiled = _spoiled_ops(next(f for f in state if f.id in _SPOILING), context)
    kept = [state]
    for group in groups.values():
        if group is state:
            continue
        numbers = [f for f in group if f.id[:2] in ("RG", "SE") and f.op in spoiled]
        rest = [f for f in group if f not in numbers]
        state.extend(numbers)
        kept.extend([rest] if rest else [])
    return kept


def _spoiled_ops(state: Finding, context: Context) -> set[str]:
    """Ops whose numbers a state finding makes meaningless: all, or those at and behind the uncalibrated ones."""
    if state.id != "ST5" or state.patch is None:
        return {layer.op_name for layer in context.layers}
    names = str(state.patch.arguments.get("names", "")).split(",")
    first = [layer for name in names for layer in context.calls_of(name)]
    return {layer.op_name for start in first for layer in (start, *context.behind(start))}


def _collapse(group: list[Finding]) -> Finding:
    first, *others = sorted(group, key=lambda f: (SEVERITY_ORDER.index(f.severity), _family(f)))
    lines: dict[str, None] = {}
    for other in others:
        if (other.id, other.op, other.title) == (first.id, first.op, first.title):
            continue
        is_elsewhere = other.op not in ("", first.op)
        if is_elsewhere:
            lines[other.op] = None
        where = f" at {other.op}" if is_elsewhere else ""
        lines[f"{other.id} {other.severity}{where}: {other.title}"] = None
    return replace(first, related=(*first.related, *lines)) if lines else first


def _order(finding: Finding) -> tuple[int, float]:
    gain = finding.expected_gain_db if finding.expected_gain_db is not None else -math.inf
    return SEVERITY_ORDER.index(finding.severity), -gain


def _family(finding: Finding) -> int:
    prefix = finding.id[:2]
    return _FAMILIES.index(prefix) if prefix in _FAMILIES else len(_FAMILIES)
