"""Loaded files whose products read uint8 activations give the same codes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from profiler.quant import compile_model, convert_fx, default_calib_16bit_fake_quant_qconfig, load_compiled
from profiler.quant.deploy import compile as compiling
from profiler.quant.deploy.export import record_model
from profiler.quant.deploy.probe import unsigned_kernels_are_exact
from profiler.quant.deploy.session import make_session, run_session
from profiler.quant.deploy.unsigned import with_unsigned_activations
from sample_models import digits
from tests.quant.deploy.functions import Function, ints, rand
from tests.quant.deploy.models import IMAGE, converted
from tests.quant.stages import fx
from tests.sample_models.test_mobilenet_v2 import fx_calib_model

pytestmark = pytest.mark.skipif(not unsigned_kernels_are_exact(), reason="this CPU's uint8 kernels saturate")


class Convs(nn.Module):
    """Padded, strided, depthwise, transposed and one-dimensional convolutions with and without ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.ReLU6())
        self.c, self.pool = nn.Conv2d(8, 6, 1), nn.MaxPool2d(3, 1, 1)
        self.d, self.e, self.fc = nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Any:
        x = self.c(self.b(self.a(x)))
        y = self.d(self.pool(x) + x)
        return self.fc(torch.relu(self.e(y.flatten(2))).mean(-1)), x


def codes_are_equal(model: nn.Module, x: Tensor) -> Counter[str]:
    """Every op's codes and the outputs, from a file with uint8 activations; how often it has each operator."""
    exported = record_model(model, x, mark_ops=True)
    proto = with_unsigned_activations(exported.proto)
    onnx.checker.check_model(proto, full_check=True)
    marks = [m for m in exported.marks if m.value and not m.tensor.is_floating_point()]
    names = [*(m.value for m in marks), *exported.output_names]
    expected = [*(m.tensor for m in marks), *exported.outputs]
    for opt in (0, 3):
        actual = run_session(make_session(proto, opt), exported.input_names, exported.inputs, names)
        for name, a, e in zip(names, actual, expected, strict=True):
            if e.is_floating_point():
                torch.testing.assert_close(a, e, rtol=0, atol=1e-6 * float(e.abs().max()))
            else:
                assert torch.equal(a, e), name
    return Counter(node.op_type for node in proto.graph.node)


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_net_gives_equal_codes(front_end: str) -> None:
    codes_are_equal(converted(front_end), IMAGE)


def test_every_kind_of_convolution_gives_equal_codes() -> None:
    torch.manual_seed(0)
    x = rand(2, 3, 12, 12)

    kinds = codes_are_equal(convert_fx(fx(Convs().eval(), [x])), x * 3)  # beyond the range that was observed

    assert kinds["QLinearConv"] >= 3


def test_int16_activations_give_equal_codes() -> None:
    x = rand(2, 3, 12, 12)

    codes_are_equal(convert_fx(fx(Convs().eval(), [x], default_calib_16bit_fake_quant_qconfig)), x)


def test_mobilenet_v2_gives_equal_codes() -> None:
    codes_are_equal(convert_fx(fx_calib_model()), digits.normalise(digits.test_set()[0][:8]))


def test_products_of_extreme_codes_and_padding_are_exact() -> None:
    weight = ints(8, 64, 3, 3, low=0, high=2) * 127 + ints(8, 64, 3, 3, low=0, high=2, seed=1) * -128
    x = (ints(2, 64, 6, 6, low=0, high=2, seed=2) * -128).to(torch.int8)

    def product(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x.double(), weight.double(), padding=1).int()

    kinds = codes_are_equal(Function(product).eval(), x)

    assert kinds["BitwiseXor"] == 1


def test_values_between_convolutions_stay_unsigned() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)
            )

        def forward(self, x: Tensor) -> Any:
            return self.layers(x)

    x = rand(2, 3, 12, 12)
    proto = record_model(convert_fx(fx(Two().eval(), [x])), x).proto

    kinds = Counter(node.op_type for node in with_unsigned_activations(proto).graph.node)

    assert (kinds["QLinearConv"], kinds["Clip"], kinds["BitwiseXor"]) == (3, 3, 2)  # the first and the last value


def test_load_compiled_leaves_the_file_and_uses_it_where_it_is_exact(tmp_path: Path, monkeypatch: Any) -> None:
    model, path = converted(), tmp_path / "net.onnx"
    compile_model(model, IMAGE, path)
    assert not any(node.op_type == "BitwiseXor" for node in onnx.load(path).graph.node)
    seen = []
    make = compiling.make_session
    monkeypatch.setattr(compiling, "make_session", lambda proto, opt: seen.append(proto) or make(proto, opt))

    fast = load_compiled(path)
    monkeypatch.setattr(compiling, "unsigned_kernels_are_exact", lambda: False)
    plain = load_compiled(path)

    assert [any(node.op_type == "BitwiseXor" for node in proto.graph.node) for proto in seen] == [True, False]
    for name, value in plain(IMAGE[:1]).items():
        assert torch.equal(fast(IMAGE[:1])[name], value)
