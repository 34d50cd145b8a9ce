"""The catalogue of findings; importing it registers every rule."""

from profiler.analysis.findings import configuration, numbers, sensitivity, state, structure
from profiler.analysis.findings.registry import rule_ids, run_rules

__all__ = ["configuration", "numbers", "rule_ids", "run_rules", "sensitivity", "state", "structure"]
