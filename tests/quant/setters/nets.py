"""Small networks, and what a setter did to them: dtypes of the prepared model beside the log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from profiler.quant import (
    DeQuantStub,
    FakeQuantize,
    FloatFunctional,
    QconfigSetter,
    QuantStub,
    get_qconfig,
    prepare_qat_fx,
)
from profiler.quant.naming import op_name
from profiler.quant.setters.ports import INPUT, OUTPUT, WEIGHT
from profiler.quant.stubs import FakeQuantStub
from profiler.quant.swap import actual_dtype


class FusedAdd(nn.Module):
    """a, then b + bn + add + relu in one op, then mean and a linear head; no stubs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = torch.relu(self.bn(self.b(x)) + x)
        result: Tensor = self.head(y.mean([2, 3]))
        return result


class Chain(nn.Module):
    """Three convolutions with a max-pool between them, inside a submodule; the last one is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 6, 1)
        )
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.body(x))
        return result


class Products(nn.Module):
    """Two matmuls with stubs of the model's own: one of two activations, one through a FloatFunctional."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.left, self.right, self.values = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.product = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        weights = torch.softmax(self.left(x) @ self.right(x).transpose(-1, -2), -1)
        result: Tensor = self.dequant(self.product.matmul(weights, self.values(x)))
        return result


class SharedInput(nn.Module):
    """Two convolutions read the model's input, a third reads both; an unused layer besides."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)
        self.unused = nn.Linear(2, 2)
        self.softplus = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.one(x), self.two(x)], 1)
        result: Tensor = self.softplus(self.three(x))
        return result


INPUTS: dict[type[nn.Module], tuple[int, ...]] = {
    FusedAdd: (2, 3, 8, 8),
    Chain: (2, 3, 12, 12),
    Products: (2, 4, 6),
    SharedInput: (2, 3, 8, 8),
}


def make(cls: type[nn.Module]) -> Any:
    """A network of a fixed seed in eval."""
    torch.manual_seed(0)
    return cls().eval()


def batches(cls: type[nn.Module], count: int = 2) -> list[Tensor]:
    """Inputs of a network."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(INPUTS[cls], generator=generator) for _ in range(count)]


def setter(*templates: Any, **kwargs: Any) -> QconfigSetter:
    """Templates on a plain int8 reference."""
    return QconfigSetter(get_qconfig(), templates, **kwargs)


def prepare(model: nn.Module, qconfig_setter: QconfigSetter) -> Any:
    """The model prepared with a setter."""
    return prepare_qat_fx(model, qconfig_setter=qconfig_setter)


def dtypes_of(prepared: nn.Module) -> dict[tuple[str, str], str]:
    """Dtype of each port as it really is; automatic stubs have the key ("stubs", path)."""
    found: dict[tuple[str, str], str] = {}
    ops: list[str] = []  # attention is one op: nothing inside it is looked at
    for path, module in prepared.named_modules():
        if any(path.startswith(f"{op}.") for op in ops):
            continue
        ops += [path] if hasattr(module, "to_integer") else []
        if isinstance(module, FakeQuantStub) and module.is_automatic:
            found["stubs", path] = module.activation_post_process.dtype
        elif hasattr(module, "to_integer"):
            found[op_name(path), OUTPUT] = actual_dtype(module)
            weight = getattr(module, "weight_fake_quant", None)
            if isinstance(weight, FakeQuantize):
                found[op_name(path), WEIGHT] = weight.dtype
    return found


def differences(before: nn.Module, after: nn.Module) -> dict[tuple[str, str], str]:
    """Ports whose dtype differs, and what they are in the second model."""
    old, new = dtypes_of(before), dtypes_of(after)
    assert old.keys() == new.keys()
    return {port: new[port] for port in new if new[port] != old[port]}


def logged(used: QconfigSetter) -> dict[tuple[str, str], str]:
    """Dtypes that the log ends with, for outputs and weights that it changed."""
    first: dict[tuple[str, str], str] = {}
    last: dict[tuple[str, str], str] = {}
    for change in used.changes:
        if change.port != INPUT:
            key = (change.op, change.port)
            first.setdefault(key, change.before.split(" with ")[0])
            last[key] = change.after.split(" with ")[0]
    return {key: dtype for key, dtype in last.items() if dtype != first[key]}


def effect_of(prepared: Any, op: str, actual: str) -> Any:
    """The one effect of an op with this outcome."""
    (found,) = [e for e in prepared.quant_effects if e.op == op and e.actual == actual]
    return found
