"""A QuantStub whose fixed scale is too small cuts the input off: RG2, and its patch repairs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from profiler import ProfileReport, model_profiler
from profiler.quant import DeQuantStub, QuantStub, get_default_calib_qconfig


def profile(scale: float, out_dir: Path) -> tuple[nn.Sequential, ProfileReport]:
    torch.manual_seed(0)
    net = nn.Sequential(QuantStub(scale=scale), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), DeQuantStub()).eval()
    batches = [torch.randn(4, 3, 12, 12) for _ in range(3)]
    return net, model_profiler(net, batches, out_dir=out_dir, make_zip=False)


def test_rg2_stub_scale_far_too_small_is_an_error_and_the_patch_repairs_it(tmp_path: Path) -> None:
    model, report = profile(1e-3, tmp_path / "small")

    finding = next(f for f in report.findings if f.id == "RG2")
    assert (finding.op, finding.severity) == ("0", "E")
    assert finding.patch is not None

    exec(finding.patch.code, {"model": model})  # the code that the page offers for pasting
    stub = model.get_submodule("0")
    assert isinstance(stub, QuantStub)
    _, repaired = profile(float(stub.scale or 0), tmp_path / "patched")
    assert [f for f in repaired.findings if f.severity in ("E", "W")] == []


def test_rg2_stub_scale_that_fits_is_silent(tmp_path: Path) -> None:
    _, report = profile(4 / 127.5, tmp_path)

    assert "RG2" not in {f.id for f in report.findings}


def test_rg2_automatic_stub_that_clips_is_found_by_the_range_of_its_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(4, 3, 12, 12)
    averaged = get_default_calib_qconfig(calib_qkwargs={"observer": "min_max"})
    report = model_profiler(net, [x * 0.1] * 9 + [x * 3], out_dir=tmp_path, make_zip=False, qconfig_dict={"": averaged})

    finding = next(f for f in report.findings if f.id == "RG2" and "activation_post_process" in f.op)
    evidence = {e.name: e.value for e in finding.evidence}
    assert evidence["largest magnitude"] == pytest.approx(float(x.abs().max()) * 3)
