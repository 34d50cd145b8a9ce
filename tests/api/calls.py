"""A small network, and calls of model_profiler that must fail or must report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler import ProfileReport, model_profiler
from profiler.errors import ProfilerError
from tests.api.quick import write_quickly
from tests.capture.stages import assert_untouched, images


class Net(nn.Module):
    """Small, with a BatchNorm, in the mode that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))


class Half(Net):
    """Raises half-way on batches of 3."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 3:
            raise ValueError("planted")
        return super().forward(x)


def batch(size: int = 2, seed: int = 0) -> Tensor:
    return images(size, 1, 4, 4, seed=seed)


def fails(error: type[ProfilerError], parts: list[str], model: Any, data: Any, **options: Any) -> None:
    """The call raises this error, its message holds all parts, and the model is as it was."""

    def run() -> None:
        with pytest.raises(error) as raised:
            model_profiler(model, data, **options)
        text = str(raised.value)
        assert [part for part in parts if part not in text] == [], text

    assert_untouched(model, run) if isinstance(model, nn.Module) else run()


def reports(model: nn.Module, data: Any, out_dir: Path, *, in_full: bool = False, **options: Any) -> ProfileReport:
    """The call gives a report that can be read, and the model is as it was."""
    with pytest.MonkeyPatch.context() as patch:
        if not in_full:
            patch.setattr("profiler.report.write.write_report", write_quickly)
        return _reports(model, data, out_dir, **options)


def _reports(model: nn.Module, data: Any, out_dir: Path, **options: Any) -> ProfileReport:
    report = assert_untouched(model, lambda: model_profiler(model, data, out_dir=out_dir, make_zip=False, **options))
    assert report.html_path is not None
    assert report.html_path.is_file()
    assert report.verdict
    assert report.coverage.compared > 0
    (output, *_) = [layer for layer in report.layers if layer.is_output]
    assert output.accumulated.sqnr_db > 15
    return report
