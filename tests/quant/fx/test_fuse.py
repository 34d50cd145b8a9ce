from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import FloatFunctional, FuseMode, convert_fx, fuse_fx, fuse_modules
from profiler.quant.ops.gemm import FusedGemm
from tests.models import ConvBnRelu, Residual, Stubbed, images, make
from tests.quant.stages import fx

BODIES: dict[str, Any] = {
    "conv_left": lambda s, x: s.bn(s.conv(x)) + x,
    "conv_right": lambda s, x: x + s.bn(s.conv(x)),
    "torch_add": lambda s, x: torch.add(s.bn(s.conv(x)), x),
    "method_add": lambda s, x: x.add(s.bn(s.conv(x))),
    "functional_left": lambda s, x: s.ff.add(s.bn(s.conv(x)), x),
    "functional_right": lambda s, x: s.ff.add(x, s.bn(s.conv(x))),
    "without_bn": lambda s, x: x + s.conv(x),
    "in_place": lambda s, x: s.bn(s.conv(x)).add_(x),
    "identities": lambda s, x: x + s.nothing(s.bn(s.nothing(s.conv(x)))),
}
ACTIVATIONS: dict[str, Any] = {
    "none": lambda s, x: x, "module": lambda s, x: s.relu(x), "function": lambda s, x: F.relu(x),
    "relu6_module": lambda s, x: s.relu6(x), "relu6_function": lambda s, x: F.relu6(x), "method": lambda s, x: x.relu(),
    "torch": lambda s, x: torch.relu(x), "behind_identity": lambda s, x: s.relu(s.nothing(x)),
}  # fmt: skip


class Body(Stubbed):
    def __init__(self, body: str = "conv_left", activation: str = "none") -> None:
        super().__init__()
        self.conv, self.bn, self.ff = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), FloatFunctional()
        self.relu, self.relu6, self.nothing = nn.ReLU(), nn.ReLU6(inplace=True), nn.Identity()
        self.chosen = BODIES[body], ACTIVATIONS[activation]

    def body(self, x: Any) -> Any:
        add, activate = self.chosen
        return activate(self, add(self, x))


def fused_of(model: nn.Module) -> list[FusedGemm]:
    return [m for m in fuse_fx(model).modules() if isinstance(m, FusedGemm)]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_r18_fuse_fx_both_operand_orders_fuse_into_one_and_equal_float(body: str, activation: str) -> None:
    model = make(lambda: Body(body, activation))  # type: ignore[arg-type]
    fused = fuse_fx(model)
    (op,) = [m for m in fused.modules() if isinstance(m, FusedGemm)]
    assert op.epilogue.has_add
    assert bool(op.epilogue.activation) == (activation != "none")
    torch.testing.assert_close(fused(images()[0]), model(images()[0]), rtol=1e-5, atol=1e-5)


WEIGHTED: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d, (3, 4, 9)),
    "Conv3d": (lambda: nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d, (2, 4, 4, 5, 4)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 4, 3, padding=1), nn.BatchNorm1d, (3, 4, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 4, 3, padding=1), nn.BatchNorm2d, (2, 4, 6, 6)),
    "ConvTranspose2d_grouped": (
        lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
        nn.BatchNorm2d,
        (2, 4, 6, 6),
    ),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 4, 3, padding=1), nn.BatchNorm3d, (2, 4, 4, 5, 4)),
    "Linear": (lambda: nn.Linear(4, 4), nn.BatchNorm1d, (7, 4)),
}


class WeightedBody(Body):
    def __init__(self, base: str, body: str) -> None:
        super().__init__(body, "module")
        make_base, norm_class, _ = WEIGHTED[base]
        self.conv, self.bn = make_base(), norm_class(4)


@pytest.mark.parametrize("base", WEIGHTED)
@pytest.mark.parametrize("body", ["conv_left", "conv_right"])
def test_r18_fuse_fx_every_weighted_op_with_both_operand_orders(base: str, body: str) -> None:
    model = make(lambda: WeightedBody(base, body))  # type: ignore[arg-type]
    x = torch.randn(WEIGHTED[base][2])
    (op,) = fused_of(model)
    assert (op.epilogue.has_add, op.epilogue.activation) == (True, "relu")
    assert len(op.fused_names) == 4
    torch.testing.assert_close(fuse_fx(model)(x), model(x), rtol=1e-5, atol=1e-5)
    prepared = fx(model, [x])
    y, y_fq, y_q = model(x), prepared(x), convert_fx(prepared)(x)
    step = float(y.detach().abs().max()) / 127
    assert float((y - y_fq).detach().abs().max()) < 6 * step
    assert float((y_fq - y_q).detach().abs().max()) < 1.5 * step


def test_fuse_fx_transposed_conv_with_output_size_is_left_alone() -> None:
    class Sized(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.relu = nn.ConvTranspose2d(3, 3, 2, stride=2), nn.ReLU()

        def body(self, x: Any) -> Any:
            return self.relu(self.up(x, output_size=[17, 17]))

    model = make(Sized)
    x = images()[0][..., :8, :8]
    assert not fused_of(model)
    assert model(x).shape[2:] == (17, 17)
    prepared = fx(model, [x])
    assert prepared(x).shape == convert_fx(prepared)(x).shape == model(x).shape


@pytest.mark.parametrize("body", ["conv_left", "conv_right"])
def test_fuse_fx_fused_add_converts_near_float(body: str) -> None:
    model = make(lambda: Body(body, "module"))  # type: ignore[arg-type]
    prepared = fx(model, images())
    y, expected = convert_fx(prepared)(images()[0]), prepared(images()[0])
    assert float((y - expected).detach().abs().max()) < 0.05
    assert float((model(images()[0]) - expected).detach().abs().max()) < 0.2


@pytest.mark.parametrize("body", [
    lambda s, x: s.relu(s.conv(x)) + s.conv(x),  # called twice
    lambda s, x: (lambda y: s.bn(y) + y)(s.conv(x)),  # second consumer
])  # fmt: skip
def test_fuse_fx_shared_or_twice_used_is_left_alone(body: Any) -> None:
    model = make(Body)
    model.chosen = body, ACTIVATIONS["none"]
    fused = fuse_fx(model)
    assert not [m for m in fused.modules() if isinstance(m, FusedGemm)]
    torch.testing.assert_close(fused(images()[0]), model(images()[0]))


def test_fuse_fx_two_convs_meeting_in_an_add_fuse_once() -> None:
    class Two(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def body(self, x: Any) -> Any:
            return self.a(x) + self.b(x)

    model = Two().eval()
    assert len(fused_of(model)) == 1
    torch.testing.assert_close(fuse_fx(model)(images()[0]), model(images()[0]), rtol=1e-5, atol=1e-5)


def test_fuse_fx_broadcast_add_equals_float() -> None:
    class Broadcast(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1)

        def body(self, x: Any) -> Any:
            return self.conv(self.pool(x)) + x

    model = Broadcast().eval()
    prepared = fx(model, images())
    assert torch.allclose(prepared(images()[0]), model(images()[0]), atol=0.05)
    assert torch.allclose(convert_fx(prepared)(images()[0]), prepared(images()[0]), atol=0.05)


def test_fuse_fx_linear_bn_relu_fuses() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()))  # type: ignore[arg-type]
    x = torch.randn(5, 4)
    assert len(fused_of(model)) == 1
    torch.testing.assert_close(fuse_fx(model)(x), model(x), rtol=1e-5, atol=1e-5)


def test_fuse_fx_already_fused_model_stays_right() -> None:
    class After(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.norm = ConvBnRelu(3, 3), nn.BatchNorm2d(3)

        def body(self, x: Any) -> Any:
            return self.norm(self.block(x)) + x

    model = make(After)
    expected = model(images()[0])
    fuse_modules(model.block, list(ConvBnRelu.fuse_names), inplace=True)
    torch.testing.assert_close(fuse_fx(model)(images()[0]), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(fx(model, images())(images()[0]), expected, atol=0.1)


def test_fuse_fx_no_fuse_changes_nothing_and_copies() -> None:
    model = make(Residual)
    fused = fuse_fx(model, fuse_mode=FuseMode.NoFuse)
    assert not [m for m in fused.modules() if isinstance(m, FusedGemm)]
    assert type(model.stem.convolution) is nn.Conv2d
    assert torch.equal(fused(images()[0]), model(images()[0]))


@pytest.mark.parametrize("training", [False, True])
def test_fuse_fx_keeps_the_training_flag(training: bool) -> None:
    fused = fuse_fx(make(Residual).train(training))
    assert fused.training is training
    assert fused.stem.convolution.training is training
