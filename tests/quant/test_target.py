"""What the target makes of a wish: dtypes that it lacks, power-of-two scales, the op tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from profiler.errors import ConfigError
from profiler.quant import (
    ConsistencyStrategy,
    March,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_march,
)
from profiler.quant.march_table import MARCH_TABLES, unsupported_reason
from profiler.quant.observers.base import power_of_two_above
from profiler.quant.ops.registry import all_specs
from profiler.quant.states import named_fake_quants
from tests.models import Stubbed
from tests.quant.stages import calibrate

BATCHES = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]


@pytest.fixture(autouse=True)
def _level_zero() -> Iterator[None]:
    yield
    ConsistencyStrategy.set_consistency_level(0)


class Net(Stubbed):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def body(self, x: Any) -> Any:
        y = self.conv(x)
        return self.norm(y + y)


def prepared(front_end: str, qconfig: Any) -> Any:
    model = Net().eval()
    if front_end == "fx":
        return calibrate(prepare_qat_fx(model, {"": qconfig}), BATCHES)
    model.qconfig = qconfig
    return calibrate(prepare_qat(model), BATCHES)


def scales(model: nn.Module, *, of_weights: bool) -> torch.Tensor:
    return torch.cat([f.scale for n, f in named_fake_quants(model) if ("weight" in n) == of_weights])


@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("march", ["bernoulli", "bernoulli2"])
def test_r2_int16_activation_on_a_march_without_it_is_qc8_and_names_the_op(front_end: str, march: str) -> None:
    set_march(march)
    model = prepared(front_end, default_calib_16bit_fake_quant_qconfig)
    effects = {e.op: e for e in model.quant_effects}
    for op in ("conv", "add_0", "norm"):
        assert (effects[op].requested, effects[op].actual) == ("qint16", "qint8")
        assert effects[op].reason == f"QC8: {march} has no int16 activations"
    assert {f.dtype for _, f in named_fake_quants(model)} == {"qint8"}


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_bernoulli_scales_are_powers_of_two_and_never_clip(front_end: str) -> None:
    plain = prepared(front_end, default_calib_8bit_fake_quant_qconfig)
    set_march("bernoulli")
    model = prepared(front_end, default_calib_8bit_fake_quant_qconfig)
    for of_weights in (True, False):
        found = scales(model, of_weights=of_weights)
        assert torch.equal(torch.exp2(torch.log2(found).round()), found)
        ratio = found / scales(plain, of_weights=of_weights)
        assert bool((ratio >= 0.9).all())
        assert bool((ratio < 2.2).all())
    if front_end == "eager":
        codes_apart = (convert(model)(BATCHES[0]) - model(BATCHES[0])).abs().max()
        assert float(codes_apart) <= 1.001 * float(model.norm.activation_post_process.scale)


@pytest.mark.parametrize(("level", "activations", "weights"), [(0, False, False), (1, True, False), (2, True, True)])
def test_consistency_level_makes_powers_of_two(level: int, activations: bool, weights: bool) -> None:
    ConsistencyStrategy.set_consistency_level(level)
    model = prepared("eager", default_calib_8bit_fake_quant_qconfig)
    for of_weights, expected in ((False, activations), (True, weights)):
        found = scales(model, of_weights=of_weights)
        assert torch.equal(torch.exp2(torch.log2(found).round()), found) == expected


@pytest.mark.parametrize("level", [-1, 3, "1", None])
def test_consistency_level_unknown_is_an_error(level: Any) -> None:
    with pytest.raises(ConfigError, match="use 0"):
        ConsistencyStrategy.set_consistency_level(level)


def test_power_of_two_above_is_exact_at_and_around_powers() -> None:
    powers = torch.exp2(torch.arange(-100, 100).float())
    assert torch.equal(power_of_two_above(powers), powers)
    assert torch.equal(power_of_two_above(torch.nextafter(powers, torch.tensor(torch.inf))), 2 * powers)
    assert torch.equal(power_of_two_above(torch.nextafter(powers, torch.tensor(0.0))), powers)


def test_march_table_names_operators_of_the_registry() -> None:
    known = {spec.name for spec in all_specs()} | {"grid_sample", "identity"}
    assert set(MARCH_TABLES) == set(March)
    assert {name for table in MARCH_TABLES.values() for name in table.rows} <= known


@pytest.mark.parametrize(("march", "spec", "inputs", "output", "text"), [
    ("bayes", "conv", ["qint8"], "qint8", ""),
    ("bayes", "conv", ["qint16"], "torch.float32", ""),
    ("bayes", "linear", ["qint16"], "qint8", "bayes has no linear with qint16 input; it has qint8"),
    ("bayes", "sin", ["qint16"], "qint16", ""),
    ("bayes", "div", ["qint8", "qint8"], "qint8", "bayes has no div with qint8 input"),
    ("bayes", "add", ["qint8", "qint16"], "torch.float32", "no add with torch.float32 output"),
    ("bernoulli2", "conv", ["qint16"], "qint8", "bernoulli2 has no conv with qint16 input"),
    ("bernoulli2", "linear", ["qint8"], "qint8", "bernoulli2 has no linear"),
    ("bernoulli2", "softmax", ["qint8"], "qint8", "bernoulli2 has no softmax"),
    ("bernoulli2", "exp", ["qint8"], "qint8", ""),
    ("bernoulli2", "add", ["qint16"], "qint16", ""),
    ("bernoulli", "sin", ["qint8"], "qint8", "bernoulli has no sin"),
    ("nash-e", "layer_norm", ["qint16"], "qint16", ""),
    ("nash-p", "gelu", ["torch.float32"], "torch.float32", ""),
])  # fmt: skip
def test_unsupported_reason_follows_the_table(march: str, spec: str, inputs: Any, output: str, text: str) -> None:
    reason = unsupported_reason(March(march), spec, inputs, output)
    assert text in reason
    assert bool(text) == bool(reason)


@pytest.mark.parametrize(("module", "spec", "text"), [
    (nn.Conv2d(1, 1, 31), "conv", ""),
    (nn.Conv2d(1, 1, 32), "conv", "kernel (32, 32), the target has kernels below 32"),
    (nn.Conv2d(1, 8193, 1), "conv", "8193 channels"),
    (nn.Conv2d(1, 1, 3, dilation=17), "conv", "dilation (17, 17)"),
    (nn.ConvTranspose2d(1, 1, 2), "conv_transpose2d", ""),
    (nn.ConvTranspose2d(1, 1, 15), "conv_transpose2d", "kernels of 2 to 14"),
])  # fmt: skip
def test_unsupported_reason_names_the_modules_limit(module: nn.Module, spec: str, text: str) -> None:
    reason = unsupported_reason(March.BAYES, spec, ["qint8"], "qint8", module)
    assert text in reason
    assert bool(text) == bool(reason)


def test_unsupported_reason_names_the_weight_dtype() -> None:
    module = nn.Conv2d(1, 1, 1)
    module.weight_dtype = "qint16"  # type: ignore[assignment]
    assert "bayes has no qint16 weights" in unsupported_reason(March.BAYES, "conv", ["qint8"], "qint8", module)
    assert unsupported_reason(March.NASH_M, "conv", ["qint8"], "qint8", module) == ""
