"""Models that are wrapped: what torch.compile and DataParallel hold is profiled, what torch.jit made is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from profiler import model_profiler
from profiler.errors import ModelError


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


BATCHES = [torch.randn(2, 1, 8, 8) for _ in range(2)]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "parallel"])
def test_wrapped_model_gives_the_report_of_the_model_inside(wrap: object, tmp_path: Path) -> None:
    assert callable(wrap)
    report = model_profiler(wrap(make_net()), BATCHES, out_dir=tmp_path, make_zip=False)

    assert report.data.title == "Sequential"
    assert [c.mode for c in report.data.comparisons] == ["FvsQ", "QvsQ"]
    assert report.coverage.compared >= 3


@pytest.mark.parametrize("form", ["script", "trace"])
def test_model_of_torch_jit_is_refused_with_advice(form: str, tmp_path: Path) -> None:
    net = make_net()
    made = torch.jit.script(net) if form == "script" else torch.jit.trace(net, BATCHES[0])

    with pytest.raises(ModelError, match=r"scripted or traced by torch\.jit: .* pass the Python module"):
        model_profiler(made, BATCHES, out_dir=tmp_path)


def test_ops_left_in_float_are_in_the_verdict(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LocalResponseNorm(2), nn.Conv2d(4, 2, 3)).eval()

    report = model_profiler(net, BATCHES, out_dir=tmp_path, make_zip=False)

    assert "1 op stayed in float (see QConfig)" in report.verdict
