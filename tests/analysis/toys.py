"""Small real networks that have one fault or none, and what it takes to see their findings without writing a report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.analysis.context import Context
from profiler.analysis.findings import run_rules
from profiler.analysis.rank import rank
from profiler.capture.assemble import comparison_record
from profiler.capture.lockstep import run_pair
from profiler.capture.stage import Stage
from profiler.capture.state_facts import state_record
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    FloatFunctional,
    MinMaxObserver,
    QConfig,
    QuantStub,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    fuse_modules,
    get_default_calib_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
)
from profiler.quant.batches import Batch
from profiler.quant.policy import state_policy
from profiler.quant.swap import copy_model
from profiler.records import Finding, LayerRecord

MIN_MAX_QCONFIG = get_default_calib_qconfig(calib_qkwargs={"observer": MinMaxObserver})
CHANNELS = 96


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fresh weights and lively batch norms from a seed; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            if module.bias is not None:
                module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.1
        elif isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(2.0)  # type: ignore[union-attr]
            module.weight.data = 0.8 + 0.4 * torch.rand(module.weight.shape, generator=generator)
    return model.eval()


def images(num_batches: int = 2, channels: int = 3, size: int = 12, seed: int = 1) -> list[Tensor]:
    """Batches of four images around 0."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, channels, size, size, generator=generator) for _ in range(num_batches)]


class Block(nn.Sequential):
    """conv, norm and ReLU as modules that fuse."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())

    def fuse_modules(self) -> None:
        fuse_modules(self, ["0", "1", "2"], inplace=True)


class Toy(nn.Module):
    """Stub, body, pool, linear, stub. Subclasses give a body with 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.dequant(self.fc(self.pool(self.body(self.quant(x))).flatten(1)))
        return logits

    def fuse_modules(self) -> None:
        for module in self.modules():
            if isinstance(module, Block):
                module.fuse_modules()


class PlainCnn(Toy):
    """Healthy: two blocks in a row. `has_side` is a branch that may be switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.side = Block(3, 8), Block(8, 8), Block(8, 8)
        self.has_side = False

    def body(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        side: Tensor = self.side(x) if self.has_side else x
        return side


class ResidualCnn(Toy):
    """Healthy: a block with its input added by a plain +."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(3, 8), Block(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.first(x)
        total: Tensor = self.second(x) + x
        return total


class Mlp(nn.Module):
    """Healthy: two linear layers, `[N, 16]` to `[N, 4]`, without stubs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class SharedConv(Toy):
    """One conv on two branches whose ranges differ by `ratio`; the layers behind even them out."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.large, self.small = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(3, 8, 1, bias=False)
        self.shared = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.large_out = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.ReLU())
        self.small_out = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.ReLU())
        self.join = FloatFunctional()

    def finish(self) -> None:
        """Same weights on both branches but for the ratio."""
        self.small.weight.data = self.large.weight.data / self.ratio
        self.small_out[0].weight.data = self.small_out[0].weight.data * self.ratio

    def fuse_modules(self) -> None:
        fuse_modules(self, [["large_out.0", "large_out.1"], ["small_out.0", "small_out.1"]], inplace=True)

    def body(self, x: Tensor) -> Tensor:
        large, small = self.shared(self.large(x)), self.shared(self.small(x))
        joined: Tensor = self.join.cat([self.large_out(large), self.small_out(small)], 1)
        return joined


class Unfused(Toy):
    """conv and norm and ReLU that are not one op, for one of four reasons, or one op ("none")."""

    def __init__(self, cause: str) -> None:
        super().__init__()
        self.cause = cause
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu, self.relu_2 = nn.ReLU(), nn.ReLU()
        self.join = FloatFunctional()

    def body(self, x: Tensor) -> Tensor:
        if self.cause == "function":
            return F.relu(self.conv(x))
        if self.cause == "shared":
            joined: Tensor = self.join.add(self.relu(self.conv(x)), self.relu_2(self.conv(x)))
            return joined
        raw: Tensor = self.conv(x)
        if self.cause == "second consumer":
            raw = self.join.add(self.bn(raw), raw)
        out: Tensor = self.relu(raw)
        return out

    def fuse_modules(self) -> None:
        if self.cause == "none":
            fuse_modules(self, ["conv", "relu"], inplace=True)


class Chain(Toy):
    """A wide 1x1 conv with ReLU, and a narrow conv that makes up for the gains of the wide one's channels.

    Args:
        gains: factor of each of the wide conv's channels; 1 for those that are not given.
        threshold: subtracted from the channels that have a gain, in standard deviations: they are seldom active.
    """

    def __init__(self, gains: Sequence[float] = (), threshold: float = 0.0) -> None:
        super().__init__()
        self.gains, self.threshold = torch.tensor([*gains, *[1.0] * (CHANNELS - len(gains))]), threshold
        self.wide, self.relu = nn.Conv2d(3, CHANNELS, 1), nn.ReLU()
        self.narrow = nn.Conv2d(CHANNELS, 8, 1)

    def finish(self) -> None:
        """Plant the gains; the float function changes by the threshold alone."""
        is_special = self.gains != 1
        spread = self.wide.weight.data.flatten(1).norm(dim=1)
        self.wide.bias.data = torch.where(is_special, -self.threshold * spread, self.wide.bias.data) * self.gains
        self.wide.weight.data = self.wide.weight.data * self.gains[:, None, None, None]
        self.narrow.weight.data = self.narrow.weight.data / self.gains[None, :, None, None]

    def body(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.narrow(self.relu(self.wide(x)))
        return narrow

    def fuse_modules(self) -> None:
        fuse_modules(self, ["wide", "relu"], inplace=True)


class UnevenWeights(Toy):
    """A conv whose weights on a nearly silent input channel are `factor` times the others, so that those round away."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.conv, self.relu = nn.Conv2d(3, 8, 1, bias=False), nn.ReLU()

    def fuse_modules(self) -> None:
        fuse_modules(self, ["conv", "relu"], inplace=True)

    def finish(self) -> None:
        self.conv.weight.data[:, 0] *= self.factor

    def body(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv(x))
        return out


def built(toy: nn.Module, seed: int = 0) -> nn.Module:
    """A toy with its weights."""
    seeded(toy, seed)
    if hasattr(toy, "finish"):
        toy.finish()
    return toy


def configured(
    toy: nn.Module,
    qconfig: QConfig = default_calib_8bit_fake_quant_qconfig,
    out_qconfig: QConfig | None = default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
) -> nn.Module:
    """A toy fused and with its qconfigs, ready for prepare_qat."""
    if hasattr(toy, "fuse_modules"):
        toy.fuse_modules()
    toy.qconfig = qconfig  # type: ignore[assignment]
    if out_qconfig is not None:
        toy.fc.qconfig = out_qconfig  # type: ignore[assignment,union-attr]
    return toy


@torch.no_grad()
def calibrated(toy: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """A configured toy prepared, calibrated and in VALIDATION, as the manual says."""
    calib = prepare_qat(toy).eval()
    set_fake_quantize(calib, FakeQuantState.CALIBRATION)
    for batch in batches:
        calib(batch)
    calib.eval()
    set_fake_quantize(calib, FakeQuantState.VALIDATION)
    return calib


@torch.no_grad()
def calibrated_fx(toy: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """A float toy traced, prepared and calibrated."""
    qconfig_dict = {"": default_calib_8bit_fake_quant_qconfig}
    calib = prepare_qat_fx(toy, qconfig_dict, example_inputs=(batches[0],), high_precision_outputs=True).eval()
    set_fake_quantize(calib, FakeQuantState.CALIBRATION)
    for batch in batches:
        calib(batch)
    calib.eval()
    set_fake_quantize(calib, FakeQuantState.VALIDATION)
    return calib


def context_of(prepared: nn.Module, batches: Sequence[Tensor]) -> Context:
    """A prepared model against itself with fake quant off, and the state it was given in, as model_profiler does it."""
    state = state_record(prepared)
    reference, test = copy_model(prepared).eval(), copy_model(prepared).eval()
    with state_policy("ignore"):
        set_fake_quantize(reference, FakeQuantState._FLOAT)
        set_fake_quantize(test, FakeQuantState.VALIDATION)
    run = run_pair(Stage("float", reference), Stage("calib", test), [Batch((x,)) for x in batches])
    return Context(comparison_record(run, "FvsQ"), state)


def findings_of(prepared: nn.Module, batches: Sequence[Tensor]) -> tuple[Finding, ...]:
    """Headlines of a prepared model."""
    context = context_of(prepared, batches)
    return rank(run_rules(context), context)


def headlines(findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    """(id, severity, op) of the findings that ask for a change."""
    return [(f.id, f.severity, f.op) for f in findings if f.severity != "I"]


def layer_of(prepared: nn.Module, batches: Sequence[Tensor], op: str) -> LayerRecord:
    """Record of one op call."""
    return context_of(prepared, batches).by_key[op]
