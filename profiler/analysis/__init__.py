"""From records to findings, ranks and a verdict: pure functions."""
