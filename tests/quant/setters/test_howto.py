"""The how-to of setters runs as it is written, and its log is the one it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sample_models import mobilenet_v2
from tests.quant.setters.nets import dtypes_of

HOWTO = (Path(__file__).resolve().parents[3] / "docs" / "setters.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", HOWTO, re.DOTALL)


def test_howto_runs_and_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = []
    for block in BLOCKS:
        exec(block, names)
        if "calib" in names:
            calib = names["calib"]
            assert isinstance(calib, torch.nn.Module)
            found.append(calib)
            assert [e.op for e in calib.quant_effects if e.actual == "no effect"] in ([], ["MatmulDtypeTemplate 3"])
    (log,) = re.findall(r"```text\n(.*?)```", HOWTO, re.DOTALL)
    assert (tmp_path / "out" / "qconfig_changelogs.txt").read_text("utf-8") == log
    quantized = names["quantized"]
    assert isinstance(quantized, torch.nn.Module)
    assert mobilenet_v2.evaluate(quantized) > 98
    assert dtypes_of(found[0]) == dtypes_of(found[-1])
    assert dtypes_of(found[2])["backbone.layer3.1.skip_add", "output"] == "qint16"
    assert found[3].get_submodule("backbone.conv2.conv").activation_post_process.scale == 4.0 / 32768
