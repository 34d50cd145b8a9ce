"""From a model to a page in seconds; runs before all other tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from profiler import ProfileReport, model_profiler


def test_model_profiler_tiny_model_gives_a_page(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    report = model_profiler(model, [torch.randn(4, 3, 8, 8) for _ in range(2)], out_dir=tmp_path)
    assert report.html_path is not None
    page = report.html_path.read_text("utf-8")
    assert report.verdict
    assert page.startswith("<!doctype html>")
    assert report.coverage.compared > 0
    assert {layer.op_name for layer in report.layers} >= {"0", "4"}
    assert ProfileReport.load(tmp_path).data == report.data
