"""weight_reconstruction: AdaRound on the weights of a calibrated model, op by op."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError
from profiler.quant.batches import Batch
from profiler.quant.calibration.batches import take_batches
from profiler.quant.calibration.config import ReconstructionConfig
from profiler.quant.calibration.keeping import state_kept
from profiler.quant.calibration.op_calls import collect_calls, count_calls
from profiler.quant.calibration.rounding import learn_rounding
from profiler.quant.naming import op_name
from profiler.quant.ops.batch_norm import FakeQuantBatchNorm
from profiler.quant.ops.gemm import FakeQuantGemm

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReconstructedOp:
    """What weight_reconstruction did to one op.

    Attributes:
        name: op name.
        nearest_error: mean squared error of its result with nearest rounding, before the result is quantized.
        error: the same with the rounding that it has now; never larger.
        reason: why it kept nearest rounding, or "".
    """

    name: str
    nearest_error: float
    error: float
    reason: str = ""


def weight_reconstruction(
    calib_model: nn.Module,
    batches: Any,
    batch_process_func: Callable[[Any], Any] | None = None,
    custom_config_dict: dict[str, Any] | None = None,
) -> list[ReconstructedOp]:
    """Round the weights of convolutions and linears so that their results come near the float ones (AdaRound).

    In forward order, each op gets the inputs that the quantized model before it gives, and learns for each weight
    whether to round it up or down, so that its result, fused add and activation included, comes near that of the float
    model. The weights are then on the grid of their scale, which is frozen: fake quant and convert give exactly these
    codes. Where that is no better than nearest rounding, the op gets nearest rounding.

    Per op it takes two forwards per batch up to that op, and `num_steps` forward and backward passes of the op alone.
    The inputs of one op at a time are kept, and one copy of the weights. States, training flags and hooks come back,
    after an error too; what was rounded before it stays rounded.

    Args:
        calib_model: calibrated model; its weights change in place.
        batches: a batch (tensor, tuple, dict), a list of batches, or a loader.
        batch_process_func: makes a batch of what the list or loader holds, for example `lambda pair: pair[0]`.
        custom_config_dict: fields of `ReconstructionConfig` (num_batches, num_steps, exclude_prefix, ...).

    Returns:
        One entry per op that ran, in forward order.

    Raises:
        ConfigError: an unknown key, a value out of range, or an excluded prefix that no op has.
        DataError: no batches.
        NotCalibratedError: the activations have no scales yet.
        PrepareError: the model is not prepared.
    """
    config = ReconstructionConfig.of(custom_config_dict)
    items = take_batches(batches, calib_model, config.num_batches, batch_process_func)
    originals: list[tuple[nn.Parameter, Tensor]] = []
    done: list[ReconstructedOp] = []
    with state_kept(calib_model, "weight_reconstruction"):
        ops = _ops(calib_model, config.exclude_prefix)
        counts = count_calls(calib_model, ops, items)
        for number, (name, numbers) in enumerate(counts.items(), start=1):
            reason = _why_not(calib_model, ops[name])
            if reason:
                done.append(ReconstructedOp(op_name(name), 0.0, 0.0, reason))
            else:
                done.append(_reconstruct(calib_model, name, items, numbers, config, originals))
            _LOGGER.info("weight_reconstruction: %d/%d %s", number, len(counts), _line(done[-1]))
    return done


def _reconstruct(
    model: nn.Module,
    name: str,
    batches: list[Batch],
    numbers: list[int],
    config: ReconstructionConfig,
    originals: list[tuple[nn.Parameter, Tensor]],
) -> ReconstructedOp:
    """One op; its calls are gone when this returns."""
    op: Any = model.get_submodule(name)
    try:
        calls = collect_calls(model, op, batches, numbers, _original(originals))
    except ModelError as error:
        return ReconstructedOp(op_name(name), 0.0, 0.0, str(error))
    if not calls:
        return ReconstructedOp(op_name(name), 0.0, 0.0, "its weight is not used on these batches")
    rounding = learn_rounding(op, calls, config)
    originals.append((op.weight, op.weight.detach().clone()))
    op.weight.data.copy_(rounding.weight)
    op.weight_fake_quant.activation_post_process.averaging_constant = 0.0  # the scale stays as it is
    reason = "" if rounding.is_learned else "learned rounding is no better"
    return ReconstructedOp(op_name(name), rounding.nearest_error, rounding.error, reason)


def _ops(model: nn.Module, excluded: tuple[str, ...]) -> dict[str, FakeQuantGemm]:
    """Weighted ops by path, without those that a prefix excludes."""
    named = {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantGemm)}
    ops = {n: m for n, m in named.items() if not isinstance(m, FakeQuantBatchNorm)}
    missing = [p for p in excluded if not any(_begins(n, p) for n in named)]
    if missing:
        near = difflib.get_close_matches(missing[0], map(op_name, ops), n=3, cutoff=0.0)
        raise ConfigError(
            f"weight_reconstruction: exclude_prefix {missing[0]!r} is the beginning of no op; the nearest names are "
            f"{', '.join(near)}"
        )
    return {n: m for n, m in ops.items() if not any(_begins(n, p) for p in excluded)}


def _begins(path: str, prefix: str) -> bool:
    return path.startswith(prefix) or op_name(path).startswith(prefix)


def _why_not(model: nn.Module, op: FakeQuantGemm) -> str:
    """Why an op is left out, or ""."""
    if op.live_norm is not None:
        return "its batch norm is live (QATMode.WithBN), so the weight to be rounded does not exist yet"
    if sum(p is op.weight for m in model.modules() for p in m._parameters.values()) > 1:
        return "another module has the same weight"
    return "it is frozen" if op.weight_fake_quant.is_frozen else ""


@contextmanager
def _original(originals: list[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Inside the with block the weights are those from before the reconstruction."""
    rounded = [weight.data for weight, _ in originals]
    for weight, original in originals:
        weight.data = original
    try:
        yield
    finally:
        for (weight, _), data in zip(originals, rounded, strict=True):
            weight.data = data


def _line(op: ReconstructedOp) -> str:
    if op.reason:
        return f"{op.name}: nearest rounding, {op.reason}"
    return f"{op.name}: mean squared error {op.nearest_error:.4g} -> {op.error:.4g}"
