"""Writes docs/operators.md from the operator table: `python docs/operators.py`."""

from pathlib import Path

import profiler.quant  # noqa: F401  (registers the operators)
from profiler.quant.ops.coverage import coverage_page

if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(coverage_page(), "utf-8")
