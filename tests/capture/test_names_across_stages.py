"""Op names are the only join key: float, eager, fx and converted models must give the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from profiler.quant import FakeQuantState, set_fake_quantize
from tests.capture import awkward_models as nets
from tests.capture.stages import calibrated, compared, images, own_names, stages

Net = Callable[[], nn.Module]
EXPECTED: dict[Net, set[str]] = {
    nets.SharedBlock: {
        "quant", "stem", "block.conv", "block.add_0", "block.conv(1)", "block.add_0(1)", "add_0", "dequant",
    },
    nets.PlainFunctionsFirst: {
        "add_0", "sub_0", "cat_0", "quant", "conv", "cat_1", "add_1", "dequant", "add_2",
    },
    nets.Nested: {
        "quant", "dequant", "add_0", "add_1", "stages.0.0.conv", "stages.0.0.add_0", "stages.0.1.conv",
        "stages.0.1.add_0", "stages.1.conv", "stages.1.add_0",
    },
    nets.SharedConv: {"quant", "conv", "conv(1)", "conv(2)", "dequant"},
    nets.Functional: {"quant", "conv", "sum", "dequant"},
    nets.Chunks: {"quant", "conv", "chunk_0", "getitem_0", "cat_0", "dequant"},
    nets.ConvBnRelu: {"quant", "conv", "bn", "relu", "conv2", "bn2", "add_0", "dequant"},
    nets.InPlace: {"quant", "conv", "conv2", "relu", "add_0", "add_1", "dequant"},
}  # fmt: skip


@pytest.mark.parametrize("net", EXPECTED, ids=lambda net: net.__name__)
def test_names_of_a_float_model(net: Net) -> None:
    assert own_names(net().eval(), images(2, 3, 6, 6)) == EXPECTED[net]


@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("net", EXPECTED, ids=lambda net: net.__name__)
def test_names_of_prepared_and_converted_models_are_those_of_float(net: Net, front_end: str) -> None:
    x = images(2, 3, 6, 6)
    _, calib, quantized = stages(net().eval(), front_end, x)
    fused_away = set()
    for module in calib.modules():
        fused = module.__dict__.get("fused_names", ())
        own = next((n for n, m in calib.named_modules() if m is module), "").replace("_generated_", "")
        fused_away |= {name for name in fused if name != own}
    assert own_names(calib, x) | fused_away == EXPECTED[net]
    assert own_names(quantized, x) == own_names(calib, x)


@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("net", EXPECTED, ids=lambda net: net.__name__)
def test_every_op_call_finds_its_partner(net: Net, front_end: str) -> None:
    x = images(2, 3, 6, 6)
    reference, calib, quantized = stages(net().eval(), front_end, x)
    for comparison in (compared(reference, calib, x), compared(calib, quantized, x, mode="QvsQ")):
        bad = [(r.name, r.reason) for r in comparison.layers if r.status not in ("compared", "fused")]
        assert bad == []
        missing = [
            r.name for r in comparison.layers if r.status == "compared" and r.injected is None and not r.is_output
        ]
        assert missing == []


@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("net", EXPECTED, ids=lambda net: net.__name__)
def test_prepared_model_without_fake_quant_computes_what_float_does(net: Net, front_end: str) -> None:
    x = images(2, 3, 6, 6)
    model = net().eval()
    calib = calibrated(model, front_end, x)
    set_fake_quantize(calib, FakeQuantState._FLOAT)
    torch.testing.assert_close(calib(x), model(x), rtol=1e-5, atol=1e-5)
