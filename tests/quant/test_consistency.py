"""R94: consistency level 1 makes every scale of an activation a power of two, level 2 those of weights too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError
from profiler.quant import (
    ConsistencyStrategy,
    DeQuantStub,
    FakeQuantState,
    FixedScaleObserver,
    QConfig,
    QuantStub,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_out_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_16bit_fake_quant_qconfig,
    fuse_modules,
    get_default_qconfig,
    set_fake_quantize,
)
from profiler.quant.states import named_fake_quants
from tests.models import IMAGE, Residual
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.stages import FRONT_ENDS

QCONFIGS = {
    "int8": default_calib_8bit_fake_quant_qconfig,
    "int16": default_qat_16bit_fake_quant_qconfig,
    "float result": default_calib_out_8bit_fake_quant_qconfig,
    "fixed": get_default_qconfig(activation_qkwargs={"observer": FixedScaleObserver, "scale": 0.03}),
}


@pytest.fixture(autouse=True)
def _level_one() -> Iterator[None]:
    ConsistencyStrategy.set_consistency_level(1)
    yield
    ConsistencyStrategy.set_consistency_level(0)


class Composites(nn.Module):
    """Attention with a float mask (whose children join late), a GRU, a layer norm, a constant operand."""

    def __init__(self, qconfig: QConfig) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.norm = nn.LayerNorm(8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gain = nn.Parameter(torch.rand(8))
        self.qconfig = default_calib_8bit_fake_quant_qconfig
        self.attention.qconfig = qconfig

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        y = self.norm(self.quant(x)) * self.gain
        y = self.gru(y)[0]
        return self.dequant(self.attention(y, y, y, attn_mask=mask)[0])


class Batches(nn.Module):
    """One argument for `Composites`."""

    def __init__(self, qconfig: QConfig) -> None:
        super().__init__()
        self.net = Composites(qconfig)

    def forward(self, x: Tensor) -> Any:
        return self.net(x, torch.linspace(-1.0, 1.0, 25).reshape(5, 5))


def is_power_of_two(scale: Tensor) -> bool:
    return bool((torch.frexp(scale)[0] == 0.5).all())


@pytest.mark.parametrize("front", FRONT_ENDS)
@pytest.mark.parametrize("name", QCONFIGS)
def test_r94_level_one_makes_every_activation_scale_a_power_of_two(name: str, front: str) -> None:
    torch.manual_seed(0)
    model = Batches(QCONFIGS[name]).eval()
    x = torch.randn(2, 5, 8)
    prepared = FRONT_ENDS[front][0](model, [x])
    found = {path: fq for path, fq in named_fake_quants(prepared) if "weight_fake_quant" not in path}
    assert all(fq.is_calibrated for fq in found.values())
    assert [path for path, fq in found.items() if not is_power_of_two(fq.scale)] == []
    assert any("attention.softmax" in path for path in found)
    assert any("attention.biased_scores" in path for path in found)
    assert any("gru" in path and "hidden" in path for path in found)
    assert front == "fx" or any("constant" in path for path in found)  # fx puts a stub at the constant


def test_r94_level_one_makes_the_scale_of_an_embedding_a_power_of_two() -> None:
    model: Any = nn.Sequential(nn.Embedding(10, 8), DeQuantStub()).eval()
    prepared = FRONT_ENDS["eager"][0](model, [torch.arange(10)])
    assert is_power_of_two(prepared[0].weight_fake_quant.scale)


def test_fixed_scale_is_rounded_up_only_where_asked() -> None:
    assert float(FixedScaleObserver(scale=0.03).scale) == pytest.approx(0.03)
    assert float(FixedScaleObserver(scale=0.03, power_of_two=True).scale) == 2.0**-5
    assert float(FixedScaleObserver(scale=2.0**-7, power_of_two=True).scale) == 2.0**-7


def trained(front: str, level: int) -> Any:
    """A real network (residual, cat, pool, linear) after a QAT step at a level, in VALIDATION; and its input."""
    ConsistencyStrategy.set_consistency_level(level)
    torch.manual_seed(0)
    model: Any = Residual().eval()
    x = torch.randn(IMAGE)
    if front == "eager":
        for block in (model.stem, model.block):
            fuse_modules(block, list(block.fuse_names), inplace=True)
    qat = FRONT_ENDS[front][0](model, [x], default_qat_8bit_fake_quant_qconfig)
    qat.train()
    set_fake_quantize(qat, FakeQuantState.QAT)
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.01)
    qat(x).square().mean().backward()
    optimizer.step()
    qat(x)
    qat.eval()
    set_fake_quantize(qat, FakeQuantState.VALIDATION)
    return qat, x


@pytest.mark.parametrize("front", FRONT_ENDS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_r94_levels_of_a_trained_network_from_prepare_to_the_file(level: int, front: str) -> None:
    qat, x = trained(front, level)
    scales = {path: is_power_of_two(fq.scale) for path, fq in named_fake_quants(qat) if fq.is_calibrated}
    weights = [power for path, power in scales.items() if path.endswith("weight_fake_quant")]
    activations = [power for path, power in scales.items() if not path.endswith("weight_fake_quant")]
    assert len(weights) >= 3
    assert len(activations) >= 3
    assert all(activations) == (level >= 1)
    assert all(weights) == (level == 2)
    converted = FRONT_ENDS[front][1](qat)
    for module in converted.modules():
        if hasattr(module, "out_scale"):
            assert is_power_of_two(module.out_scale) or level == 0
        if hasattr(module, "weight_scale"):
            assert is_power_of_two(module.weight_scale) or level < 2
    assert float((converted(x) - qat(x)).detach().abs().max()) < 0.05 * float(qat(x).detach().abs().max())
    assert_equals_onnx(converted, x)


@pytest.mark.parametrize("level", [3, -1, "2"])
def test_r94_other_levels_are_rejected(level: Any) -> None:
    with pytest.raises(ConfigError, match=r"consistency level .* is unknown; use 0 \(statistics\)"):
        ConsistencyStrategy.set_consistency_level(level)
    assert ConsistencyStrategy.get_consistency_level() == 1
