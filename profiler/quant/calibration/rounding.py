"""AdaRound for one op: learns for each weight whether it is rounded up or down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiler.quant.affine import along_axis, fake_quantize
from profiler.quant.calibration.config import ReconstructionConfig
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import adopt
from profiler.quant.ops.gemm import FakeQuantGemm
from profiler.quant.qtensor import to_plain

_LOWER, _UPPER = -0.1, 1.1  # gamma and zeta of the paper: the stretched sigmoid reaches 0 and 1


@dataclass(frozen=True)
class Call:
    """One call of an op: its arguments behind the quantized part before it, and its result in the float model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor


@dataclass(frozen=True)
class Rounding:
    """A weight on the grid.

    Attributes:
        weight: `codes * scale`.
        error: its mean squared reconstruction error.
        nearest_error: that of nearest rounding; never smaller.
        is_learned: False where nearest rounding is the best.
    """

    weight: Tensor
    error: float
    nearest_error: float
    is_learned: bool


class _GivenWeight(nn.Module):
    """In the place of a weight's fake quant: gives the rounded weight that is being tried."""

    is_rounding = True

    def __init__(self, fake_quant: FakeQuantize) -> None:
        super().__init__()
        self.scale, self.ch_axis = fake_quant.scale.detach(), fake_quant.ch_axis
        self.weight: Tensor | None = None

    def quantize_weight(self, weight: Tensor) -> Tensor | None:
        return self.weight


class _Trial:
    """The op with other weights and an unquantized output; the model's own op stays as it is."""

    def __init__(self, op: FakeQuantGemm) -> None:
        self.op: Any = adopt(type(op), op)
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            self.op.__dict__[name] = {}
        self.given = _GivenWeight(op.weight_fake_quant)
        self.op._modules["weight_fake_quant"] = self.given
        self.op._modules["activation_post_process"] = None
        self.op.training = False

    def run(self, weight: Tensor, call: Call) -> Tensor:
        """Result of one call, before it is quantized."""
        self.given.weight = weight
        result: Tensor = to_plain(self.op.forward(*call.args, **call.kwargs))
        return result

    @torch.no_grad()
    def error(self, weight: Tensor, calls: list[Call]) -> float:
        """Mean squared difference from the float results."""
        total = sum(float((self.run(weight, call) - call.target).double().square().sum()) for call in calls)
        return total / sum(call.target.numel() for call in calls)


def learn_rounding(op: FakeQuantGemm, calls: list[Call], config: ReconstructionConfig) -> Rounding:
    """Round the weight of an op so that its results come near those of the float op.

    Minimises `C * mean |f(W~ x~) - f(W x)|^2 / (that of nearest rounding) + weight * sum (1 - |2 h - 1|^b)` over h,
    with C output channels and `W~ = scale * clamp(floor(W / scale) + h)`; x~ is the input behind the quantized ops
    before it, x the float one, f the fused add and activation. b falls from `b_range[0]` to `b_range[1]` after the
    warm-up, in which the second term is left out. The same calls and config give the same result.

    Args:
        op: fake-quant conv, linear or transposed conv whose weight is float and whose weight scale is known.
        calls: what it is fitted to, at least one; one call per step, in random order.
        config: steps, learning rate, regularization, seed.

    Returns:
        The learned weight, or that of nearest rounding where it is no worse.

    Source:
        M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020, equations 21 to 25.
    """
    trial, fake_quant = _Trial(op), op.weight_fake_quant
    weight: Tensor = op.weight.detach()
    info = fake_quant.info
    scale = along_axis(fake_quant.scale.detach(), weight.dim(), fake_quant.ch_axis)
    nearest = fake_quantize(weight, fake_quant.scale.detach(), info, fake_quant.ch_axis)
    nearest_error = trial.error(nearest, calls)
    steps = weight * (1.0 / scale)
    lower = steps.floor()
    if nearest_error == 0:
        return Rounding(nearest, 0.0, 0.0, is_learned=False)

    def on_grid(up: Tensor) -> Tensor:
        return (lower + up).clamp(info.quant_min, info.quant_max) * scale

    unit = nearest_error / op.rows(weight).shape[0]
    up = _learn(lambda h, call: trial.run(on_grid(h), call), steps - lower, calls, unit, config)
    learned = on_grid((up >= 0.5).to(lower.dtype))
    error = trial.error(learned, calls)
    if not error < nearest_error:
        return Rounding(nearest, nearest_error, nearest_error, is_learned=False)
    return Rounding(learned, error, nearest_error, is_learned=True)


def _learn(
    run: Callable[[Tensor, Call], Tensor],
    rest: Tensor,
    calls: list[Call],
    unit: float,
    config: ReconstructionConfig,
) -> Tensor:
    """The soft rounding h in 0..1 after all steps; it starts from the float weight (h = rest)."""
    chooser = torch.Generator().manual_seed(config.seed)
    logits = torch.logit((rest - _LOWER) / (_UPPER - _LOWER)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=config.learning_rate)
    warm_up = config.warm_up * config.num_steps
    for step in range(config.num_steps):
        call = calls[int(torch.randint(len(calls), (), generator=chooser))]
        with torch.enable_grad():
            up = _stretched(logits)
            loss = (run(up, call) - call.target).square().mean() / unit
            if step >= warm_up:
                progress = (step - warm_up) / max(config.num_steps - warm_up, 1)
                sharpness = config.b_range[0] + (config.b_range[1] - config.b_range[0]) * progress
                loss = loss + config.weight * (1 - (2 * up - 1).abs().pow(sharpness)).sum()
            (logits.grad,) = torch.autograd.grad(loss, [logits])
        optimizer.step()
    return _stretched(logits.detach())


def _stretched(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) * (_UPPER - _LOWER) + _LOWER).clamp(0, 1)
