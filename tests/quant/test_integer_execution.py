"""Proof that a converted model computes on integers: every torch function of its forward is intercepted."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler import quant
from profiler.quant import (
    DeQuantStub,
    QTensor,
    QuantStub,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    get_default_calib_qconfig,
)
from profiler.quant.qconfig import high_precision_output
from tests.models import (
    CalledTwice,
    InPlaceAdd,
    InPlaceRelu,
    NestedLoop,
    Residual,
    SharedModule,
    Stubbed,
    UnsupportedMiddle,
    WithFunctional,
    images,
    make,
)
from tests.quant.float_arithmetic import EXEMPTED, Watched, weights_of
from tests.quant.stages import FRONT_ENDS


class EveryOp(Stubbed):
    """Each operator of the table once."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise, self.bn = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.conv1d, self.linear = nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 4)
        self.average, self.adaptive, self.drop = nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d((4, 3)), nn.Dropout(0.5)

    def body(self, x: Any) -> Any:
        x = F.relu6(self.depthwise(self.wide(x)))
        x = self.drop(self.average(self.bn(F.pad(x, (1, 1, 1, 1)))) + 1)
        x = F.max_pool2d(torch.cat([x, x + x], 1)[:, 3:9], 2)
        x = torch.relu(self.adaptive(x)).flatten(2)
        return self.linear(self.conv1d(x).mean(2))


class NonLinear(Stubbed):
    """Tables, norms, softmax and slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.prelu, self.norm, self.group = nn.PReLU(6), nn.LayerNorm(8), nn.GroupNorm(2, 6)

    def body(self, x: Any) -> Any:
        x = self.group(self.norm(self.prelu(F.gelu(self.conv(x)))))
        x = torch.softmax(x.clamp(-1, 1), 1).sqrt() * torch.sigmoid(x)
        return self.linear(F.log_softmax(x, 1).mean((2, 3)).exp())


class Arithmetic(Stubbed):
    """Arithmetic of activations, with masks, indices and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.register_buffer("gain", torch.linspace(0.5, 1.5, 6).view(6, 1, 1))

    def body(self, x: Any) -> Any:
        x = self.conv(x)
        x = 1 - x * self.gain / (x.abs() + 1)
        x = torch.where(x > 0, x, -x) - x.amax(1, keepdim=True) * torch.sign(x)
        x = torch.maximum(torch.minimum(x, x * 0.5), torch.cat([x[:, 3:], x[:, :3]], 1))
        y = torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2))
        y = torch.baddbmm(y, y, torch.einsum("bij,bkj->bik", y, y)).masked_fill(y < 0, -1e9)
        return self.linear(torch.stack([y, y.cumsum(1)], 1).sum(1).topk(6, 1)[0])


NETS = (EveryOp, Residual, SharedModule, CalledTwice, InPlaceAdd, InPlaceRelu, NestedLoop, WithFunctional)
QCONFIGS = {
    "int8": default_calib_8bit_fake_quant_qconfig,
    "int16": default_calib_16bit_fake_quant_qconfig,
    "high_precision": high_precision_output(default_calib_8bit_fake_quant_qconfig),
}


def integer_model(cls: type[nn.Module], front_end: str, precision: str = "int8") -> Any:
    stage, convert = FRONT_ENDS[front_end]
    model = make(cls)
    if precision == "high_precision":
        model.linear.qconfig = QCONFIGS[precision]
        return convert(stage(model, images()))
    return convert(stage(model, images(), QCONFIGS[precision]))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("cls", [*NETS, NonLinear, Arithmetic])
@pytest.mark.parametrize("precision", ["int8", "int16"])
def test_integer_model_does_no_float_arithmetic_between_the_stubs(
    cls: type[nn.Module], front_end: str, precision: str
) -> None:
    model = integer_model(cls, front_end, precision)
    for x in images():  # the first forward makes the plans, the later ones use them
        _, watch = Watched(model)(x)
        assert watch.violations == []
        assert watch.num_functions > 10


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_integer_model_with_high_precision_output_is_integer_up_to_it(front_end: str) -> None:
    model = integer_model(EveryOp, front_end, "high_precision")
    y, watch = Watched(model)(images()[0])
    assert watch.violations == []
    assert watch.num_products > 0
    assert type(y) is Tensor


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("cls", NETS)
def test_integer_model_weights_are_int8_tensors(cls: type[nn.Module], front_end: str) -> None:
    model = integer_model(cls, front_end)
    weights = weights_of(model)
    assert weights
    assert {w.dtype for w in weights.values()} <= {torch.int8}
    assert list(model.parameters()) == []


@pytest.mark.parametrize("place", sorted(EXEMPTED), ids=".".join)
def test_every_place_that_the_watch_exempts_exists(place: tuple[str, str]) -> None:
    file, function = place
    sources = [path.read_text() for path in Path(quant.__file__).parent.rglob(file)]  # by name, as the watch sees it
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    assert function in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_watch_sees_an_op_that_was_left_in_float() -> None:
    _, watch = Watched(integer_model(UnsupportedMiddle, "fx"))(images()[0])
    assert any("lp_pool2d" in violation for violation in watch.violations)
    assert any("logcumsumexp" in violation for violation in watch.violations)


def test_watch_sees_a_float_weight_in_an_integer_op() -> None:
    model = integer_model(SharedModule, "eager")
    model(images()[0])
    for plan in model.first._plans.by_scale.values():
        plan.weight.mul_(1.0001)  # no integers any more
        object.__setattr__(plan, "fast", None)  # the packed weights of the 8-bit kernels are bytes
    _, watch = Watched(model)(images()[0])
    assert any("conv2d" in violation for violation in watch.violations)


def test_watch_sees_a_fake_quant_model() -> None:
    stage, _ = FRONT_ENDS["fx"]
    _, watch = Watched(stage(make(Residual), images()))(images()[0])
    assert any("conv2d" in violation for violation in watch.violations)
    assert any("linear" in violation for violation in watch.violations)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_narrower_code_range_is_kept_by_convert(front_end: str) -> None:
    prepare, to_integers = FRONT_ENDS[front_end]
    qconfig = get_default_calib_qconfig(calib_qkwargs={"quant_min": -8, "quant_max": 7})
    torch.manual_seed(0)
    model = nn.Sequential(QuantStub(), nn.Conv2d(2, 3, 1), nn.ReLU6(), nn.Conv2d(3, 3, 1), DeQuantStub())
    batch, x = images(2, (2, 2, 4, 4))
    calib = prepare(model, [batch], qconfig)
    x = x * 3  # beyond what was observed: the codes clip
    quantized = to_integers(calib)
    seen: list[Any] = []
    for module in quantized.modules():
        module.register_forward_hook(lambda _module, _args, out: seen.append(out))
    torch.testing.assert_close(quantized(x), calib(x))
    codes = [q.plain for q in seen if isinstance(q, QTensor)]
    assert codes
    assert all(q.min() >= -8 and q.max() <= 7 for q in codes)
