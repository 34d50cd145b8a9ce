"""perf_model, visualize_model and check_deploy_device."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError
from profiler.quant import (
    DeQuantStub,
    March,
    QuantStub,
    check_deploy_device,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    perf_model,
    prepare_qat_fx,
    set_march,
    visualize_model,
)
from tests.quant.deploy.models import BATCHES, IMAGE, Net, converted
from tests.quant.stages import calibrate, fx


@pytest.fixture(scope="module")
def model() -> Any:
    return converted()


def test_r34_layers_add_up_to_the_totals(model: Any, tmp_path: Path) -> None:
    result = perf_model(model, IMAGE, out_dir=tmp_path, layer_details=True)

    total, layers = result["total"], result["layers"]
    for key in ("flops", "bytes", "time_us"):
        assert sum(layer[key] for layer in layers) == total[key]
    assert sum(layer["share_percent"] for layer in layers) == pytest.approx(100)
    assert json.loads((tmp_path / "perf.json").read_text()) == result
    page = (tmp_path / "perf.html").read_text()
    assert "http" not in page
    assert "no vendor hardware" in page


def test_flops_and_bytes_of_known_layers(model: Any, tmp_path: Path) -> None:
    layers = {layer["name"]: layer for layer in perf_model(model, IMAGE, out_dir=tmp_path)["layers"]}

    assert layers["stem.0"]["flops"] == 2 * (2 * 8 * 12 * 12) * (3 * 3 * 3)
    assert layers["fc"]["flops"] == 2 * 2 * 5 * 288
    # codes in, codes out, int8 weights, int32 bias
    assert layers["fc"]["bytes"] == 2 * 288 + 2 * 5 + 5 * 288 + 5 * 4
    assert layers["head"]["bytes"] == 2 * 8 * 36 + 4 * (2 * 4 * 36) + 4 * 8 + 4 * 4


def test_qat_model_and_converted_model_cost_the_same(model: Any, tmp_path: Path) -> None:
    prepared = perf_model(converted_from(), IMAGE, out_dir=tmp_path)

    assert prepared["total"]["flops"] == perf_model(model, IMAGE, out_dir=tmp_path)["total"]["flops"]


def converted_from() -> Any:
    set_march(March.BAYES)
    return fx(Net().eval(), BATCHES)


def test_faster_march_takes_less_time(model: Any, tmp_path: Path) -> None:
    times = [
        perf_model(model, IMAGE, march, out_dir=tmp_path)["total"]["time_us"]
        for march in ("bernoulli2", "bayes", "nash-p")
    ]

    assert times == sorted(times, reverse=True)


def test_perf_of_a_float_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float model"):
        perf_model(Net().eval(), IMAGE, "bayes", out_dir=tmp_path)


def test_picture_has_every_op_and_every_edge(model: Any, tmp_path: Path) -> None:
    text = visualize_model(model, IMAGE, "bayes", tmp_path / "deep" / "net.svg")

    assert (tmp_path / "deep" / "net.svg").read_text("utf-8") == text
    root = ElementTree.fromstring(text)
    titles = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}title")]
    for name in ("quant", "stem.0", "skip", "pool", "flatten", "fc", "head", "dequant_a", "dequant_b"):
        assert any(title.startswith(f"{name} |") for title in titles), name
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 9  # the skip reads the stem twice
    assert not any("has no" in title for title in titles)


def test_picture_shows_what_the_target_cannot_run(model: Any) -> None:
    assert "bernoulli2 has no linear" in visualize_model(model, IMAGE, "bernoulli2")


def test_r53_devices_and_the_kernels_that_ran(model: Any, tmp_path: Path) -> None:
    places = check_deploy_device(model, IMAGE, out_dir=tmp_path)

    assert dict(places["stem.0"].kernels).keys() == {"QLinearConv", "Clip"}
    assert "MatMulInteger" in dict(places["fc"].kernels)
    assert tuple(places["stem.0"]) == ("BPU", "module")
    assert (places["quant"].device, places["dequant_a"].device) == ("CPU", "CPU")
    assert {p.arithmetic for p in places.values() if p.device == "BPU"} == {"integer"}
    lines = (tmp_path / "deploy_device.txt").read_text().splitlines()
    assert [cell.strip() for cell in lines[0].split("|")][:3] == ["name", "deploy device", "type"]
    assert len(lines) == len(places) + 3


def test_r53_devices_of_a_prepared_model_from_its_graph(tmp_path: Path) -> None:
    places = check_deploy_device(converted_from(), out_dir=tmp_path)

    assert {name: p.device for name, p in places.items()} == {
        "quant": "CPU", "stem.0": "BPU", "skip": "BPU", "pool": "BPU", "flatten": "BPU", "fc": "BPU", "head": "BPU",
        "dequant_a": "CPU", "dequant_b": "CPU",
    }  # fmt: skip


class Hybrid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.first, self.middle, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.last(self.middle(self.first(self.quant(x)))))


@pytest.mark.parametrize("has_inputs", [True, False])
def test_r25_hybrid_op_runs_on_the_cpu(has_inputs: bool, tmp_path: Path) -> None:
    set_march(March.BAYES)
    prepared = prepare_qat_fx(
        Hybrid().eval(),
        {"": default_calib_8bit_fake_quant_qconfig},
        hybrid=True,
        hybrid_dict={"module_name": ["middle"]},
    )
    model = convert_fx(calibrate(prepared, BATCHES))

    places = check_deploy_device(model, IMAGE if has_inputs else None, out_dir=tmp_path)

    assert [places[name].device for name in ("first", "middle", "last")] == ["BPU", "CPU", "BPU"]
    if has_inputs:
        assert places["middle"].arithmetic == "float"


def test_eager_model_without_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pass example_inputs"):
        check_deploy_device(converted("eager"), out_dir=tmp_path)
