"""The rules: each is a pure function of the context that yields findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from profiler.analysis.context import Context
from profiler.errors import RegistryError
from profiler.records import Finding

Rule = Callable[[Context], Iterable[Finding]]
_RULES: dict[str, Rule] = {}


def rule(rule_id: str) -> Callable[[Rule], Rule]:
    """Register the rule that makes findings with this id.

    Raises:
        RegistryError: the id is taken.
    """

    def register(function: Rule) -> Rule:
        if rule_id in _RULES:
            raise RegistryError(f"rule {rule_id} is registered twice")
        _RULES[rule_id] = function
        return function

    return register


def run_rules(context: Context) -> list[Finding]:
    """Findings of all rules, in the order of the rules' ids."""
    return [finding for rule_id in sorted(_RULES) for finding in _RULES[rule_id](context)]


def rule_ids() -> tuple[str, ...]:
    """Ids of all rules."""
    return tuple(sorted(_RULES))
