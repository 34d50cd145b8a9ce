"""The example of docs/calibration.md runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

from profiler.quant.calibration.auto import CalibrationChoice
from profiler.quant.calibration.reconstruction import ReconstructedOp

HOWTO = (Path(__file__).resolve().parents[3] / "docs" / "calibration.md").read_text("utf-8")


def test_howto_example_runs_and_gains() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", HOWTO, re.S)
    names: dict[str, object] = {}
    exec(code, names)
    choice, rounded = names["choice"], names["rounded"]
    assert isinstance(choice, CalibrationChoice)
    assert choice.error <= choice.min_max_error
    assert isinstance(rounded, list)
    assert all(isinstance(op, ReconstructedOp) and op.error <= op.nearest_error for op in rounded)
