"""Awkward networks: shared, uncalled, repeated, nested, in-place, non-tensor output, failing forward and more."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import DeQuantStub, FloatFunctional, QuantStub

IMAGE = (2, 3, 8, 8)


class Stubbed(nn.Module):
    """Base: `body` runs between a QuantStub and a DeQuantStub."""

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(scale), DeQuantStub()

    def body(self, x: Any) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.body(self.quant(x)))


class ConvBnRelu(nn.Module):
    """conv, bn, relu by other names than a fuser might expect; `fuse_names` lists them."""

    fuse_names = ("convolution", "normalisation", "activate")

    def __init__(self, cin: int, cout: int, stride: int = 1, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.normalisation = nn.BatchNorm2d(cout)
        self.activate = activation(inplace=True)

    def forward(self, x: Any) -> Any:
        return self.activate(self.normalisation(self.convolution(x)))


class Residual(Stubbed):
    """Two blocks, a `+`, a torch.cat, a pool and a linear layer: the everyday network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = ConvBnRelu(3, 4), ConvBnRelu(4, 4, activation=nn.ReLU6)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def body(self, x: Any) -> Any:
        x = self.stem(x)
        y = self.block(x) + x
        x = torch.cat([x, y], 1)
        return self.head(self.pool(F.max_pool2d(x, 2)).flatten(1))


class SharedModule(Stubbed):
    """One conv called three times, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.alias = self.first

    def body(self, x: Any) -> Any:
        return self.alias(self.first(self.first(x)))


class CalledTwice(Stubbed):
    """A module with a `+` inside, called twice, and a `+` of its own."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Any) -> Any:
            return self.conv(x) + x + x

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()

    def body(self, x: Any) -> Any:
        return self.inner(self.inner(x)) + x


class InPlaceAdd(Stubbed):
    """`x += y` and `x.add_(y)`, the latter without using the result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def body(self, x: Any) -> Any:
        y = self.conv(x)
        y += x
        y.add_(x)
        return y


class InPlaceRelu(Stubbed):
    """In-place activations as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def body(self, x: Any) -> Any:
        y = F.relu(self.conv(x), inplace=True)
        return F.relu6(self.second(y), inplace=True)


class NestedLoop(Stubbed):
    """Sequential in Sequential, and a ModuleList with a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.nest = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 3, 1)))
        self.steps = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def body(self, x: Any) -> Any:
        x = self.nest(x)
        for step in self.steps:
            x = step(x) + x
        return x


class DictOutput(Stubbed):
    """Keyword-only input, dict output with a tuple, a number and None in it; an uncalled module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.uncalled = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.other_dequant = DeQuantStub()

    def forward(self, *, image: Tensor, gain: float = 1.0) -> dict[str, Any]:  # type: ignore[override]
        y = self.conv(self.quant(image))
        return {"y": self.dequant(y), "parts": (self.other_dequant(y) * gain, 3), "nothing": None}


class IntegerInput(Stubbed):
    """An embedding of integer tokens before the stub."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(10, 6), nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Any:
        return self.dequant(self.linear(self.quant(self.embedding(tokens))))


class Failing(Stubbed):
    """Raises in the middle of a nested module while `fails`."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fails = nn.Conv2d(3, 3, 1), False

        def forward(self, x: Any) -> Any:
            x = self.conv(x) + x
            if self.fails:
                raise ValueError("planted")
            return x

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()

    def body(self, x: Any) -> Any:
        return self.inner(x) + x


class WithFunctional(Stubbed):
    """FloatFunctional add behind conv and bn, then relu: the eager pattern bn-add-relu."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.ff, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), FloatFunctional(), nn.ReLU()

    def body(self, x: Any) -> Any:
        return self.relu(self.ff.add(self.bn(self.conv(x)), x))


class FrozenNorm(Stubbed):
    """Its `train` keeps the batch norm in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.bn.eval()
        return self

    def body(self, x: Any) -> Any:
        return self.bn(F.relu(self.conv(x)))


class FloatPart(Stubbed):
    """A loss-like part with qconfig None behind its own stub."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.post = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
        self.post.qconfig = None

    def forward(self, x: Tensor) -> Any:
        return self.post(self.dequant(self.conv(self.quant(x))))


class UnsupportedMiddle(Stubbed):
    """A power-average pool and a running log-sum between convs: no operators of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.second = nn.Conv2d(3, 4, 1), nn.LPPool2d(2, 2), nn.Conv2d(4, 3, 1)

    def body(self, x: Any) -> Any:
        return self.second(torch.logcumsumexp(self.pool(self.first(x)), 1))


class DataDependent(nn.Module):
    """Cannot be traced symbolically."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if bool(x.sum() > 0) else x


class UntraceableMiddle(Stubbed):
    """A part that symbolic tracing cannot follow, between convs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Conv2d(3, 4, 1), DataDependent(), nn.Conv2d(4, 3, 1)

    def body(self, x: Any) -> Any:
        return self.last(self.part(self.first(x)))


EAGER = (
    Residual,
    SharedModule,
    CalledTwice,
    InPlaceAdd,
    InPlaceRelu,
    NestedLoop,
    WithFunctional,
    FrozenNorm,
    FloatPart,
)


def make(cls: type[nn.Module], seed: int = 0) -> Any:
    """A network in eval with batch norms that have seen something."""
    torch.manual_seed(seed)
    model = cls().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    return model


def images(count: int = 3, shape: tuple[int, ...] = IMAGE) -> list[Tensor]:
    """Seeded batches in -1..1."""
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(shape, generator=generator) * 2 - 1 for _ in range(count)]
