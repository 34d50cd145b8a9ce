"""R22 and R63: the JIT methods of prepare, and what prepare writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from profiler.quant import DeQuantStub, PrepareMethod, QuantStub, convert, prepare
from profiler.quant.checking.result import SECTIONS
from profiler.quant.states import named_fake_quants
from tests.quant.record.stages import INT8, relative_error
from tests.quant.stages import calibrate

METHODS = (PrepareMethod.JIT, PrepareMethod.JIT_STRIP)


class Stubbed(nn.Module):
    """Preprocessing and boxes outside the stubs, functions inside; a loop that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.norm, self.side = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1)
        self.after = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.quant(self.before(x - x.mean()) * 0.5)
        y = torch.relu(self.norm(self.conv(x)))
        y = torch.cat([y, y * self.side(x)], 1)
        scores = self.dequant(y.reshape(len(y), 4, -1).mean(2))
        return [self.after(torch.exp(row[row > 0].sum() * row)) for row in scores]


@pytest.fixture
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(4, 3, 8, 8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("method", METHODS)
def test_r22_code_outside_the_stubs_is_untouched(method: PrepareMethod, images: list[Tensor]) -> None:
    net = Stubbed().eval()
    model = prepare(net, images[0], INT8, method, out_dir=None)
    for path in ("before.0", "before.1", "before.2", "after"):
        outside = model.get_submodule(path)
        assert type(outside) is type(net.get_submodule(path))
        state = net.get_submodule(path).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in outside.state_dict().items())
    assert not any(name.startswith(("before", "after")) for name, _ in named_fake_quants(model))
    outside_names = {"sub_0", "mul_0", "mean_0", "exp_0", "sum_0"}
    made = {n.removeprefix("_generated_") for n, _ in model.named_children() if n.startswith("_generated_")}
    assert not made & outside_names


@pytest.mark.parametrize("method", METHODS)
def test_r22_functions_inside_the_stubs_become_modules(method: PrepareMethod, images: list[Tensor]) -> None:
    net = Stubbed().eval()
    model = prepare(net, images[0], INT8, method, out_dir=None)
    generated = {n for n, _ in model.named_children() if n.startswith("_generated_")}
    assert {"_generated_cat_0", "_generated_mul_1", "_generated_mean_1"} <= generated
    calibrate(model, images)
    converted = convert(model)
    for expected, found in zip(net(images[0]), converted(images[0]), strict=True):
        assert relative_error(expected, found) < 0.1
    assert converted.conv.weight.dtype == torch.int8


@pytest.mark.parametrize("method", PrepareMethod)
def test_r63_prepare_writes_the_check_with_its_sections_in_order(
    method: PrepareMethod, images: list[Tensor], tmp_path: Path
) -> None:
    net = nn.Sequential(QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), DeQuantStub()).eval()
    model = prepare(net, images[0], INT8, method, out_dir=tmp_path)
    text = (tmp_path / "model_check_result.txt").read_text("utf-8")
    places = [text.find(section) for section in SECTIONS if section in text]
    assert len(places) >= 6
    assert places == sorted(places)
    assert (tmp_path / "fx_graph.txt").stat().st_size > 0
    assert all(not fq.is_calibrated for n, fq in named_fake_quants(model) if "weight" not in n)
