"""Networks that are awkward to follow; all run in float, prepared (eager and fx) and converted unless they say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import DeQuantStub, FloatFunctional, QuantStub


class Stubbed(nn.Module):
    """Base: a float part, a QuantStub, `body`, a DeQuantStub."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.body(self.quant(x)))

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Residual(nn.Module):
    """A block with `+` inside."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x


class SharedBlock(Stubbed):
    """A block with `+` inside, called twice; a third `+` outside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 4, 1), Residual()

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.block(self.block(x)) + x


class PlainFunctionsFirst(Stubbed):
    """Functions on plain tensors before the QuantStub, of the same names as those behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x + 1, x - 1], 1)
        x = self.quant(x)
        y = torch.cat([self.conv(x), x], 1) + 0.5
        return self.dequant(y) + 2


class Nested(Stubbed):
    """Functions in modules in modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(Residual(3), Residual(3)), Residual(3)])

    def body(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x) + x
        return x


class SharedConv(Stubbed):
    """One conv at three places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(self.conv(x)))


class Functional(Stubbed):
    """FloatFunctional, and an Identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sum, self.skip = nn.Conv2d(3, 3, 1), FloatFunctional(), nn.Identity()

    def body(self, x: Tensor) -> Tensor:
        return self.sum.add(self.conv(x), self.skip(x))


class Chunks(Stubbed):
    """An op with several outputs, taken apart and put together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def body(self, x: Tensor) -> Tensor:
        left, right = self.conv(x).chunk(2, dim=1)
        return torch.cat([right[:, :1], left], dim=1)


class ConvBnRelu(Stubbed):
    """A group that fuses, then one that stays apart because its inner result is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        with torch.no_grad():
            for norm in (self.bn, self.bn2):
                norm.running_mean.uniform_(-0.5, 0.5)
                norm.running_var.uniform_(0.5, 2)

    def body(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        y = self.conv2(x)
        return self.bn2(y) + y


class InPlace(Stubbed):
    """In-place module, operator and method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(3, 3, 1)

    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.conv2(y)
        self.relu(y)
        y += z
        y.add_(x)
        return y


class FloatInPlace(nn.Module):
    """All ways to overwrite a tensor; float only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.view(-1)[:5].add_(1)
        z = y * 2
        z[:, 0] = 7.0
        F.relu(z, True)
        torch.mul(z, 3, out=z)
        y -= z
        return y


class Branching(Stubbed):
    """Another path for batches with a negative sum; eager only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.never = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        is_positive = bool(x.sum() > 0)
        x = self.quant(x)
        return self.dequant(self.first(x) if is_positive else self.second(x))


class Recursive(nn.Module):
    """A module that calls itself; float only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = self.fc(x) + 1
        return self(x, depth - 1) if depth else x


@dataclass
class Result:
    scores: Tensor
    extra: dict[str, Any]


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Outputs(nn.Module):
    """Any kind of output; float only."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(4, 4), kind

    def forward(self, x: Tensor) -> Any:
        y, z = self.fc(x), x * 2
        kinds: dict[str, Any] = {
            "tensor": y,
            "tuple": (y, z),
            "nested": [y, {"z": (z, None, "text")}, None],
            "dict": {"y": y, "z": z},
            "namedtuple": Pair(y, z),
            "dataclass": Result(y, {"z": [z]}),
            "none": None,
        }
        return kinds[self.kind]


class Keywords(nn.Module):
    """Keyword-only inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, *, x: Tensor, offset: Tensor) -> Tensor:
        return self.fc(x) + offset


class IntAndBool(nn.Module):
    """Integer and bool tensors beside float ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        keep = (tokens > 0).unsqueeze(-1)
        values, _ = (self.embedding(tokens) * keep).max(dim=1)
        return self.fc(values)
