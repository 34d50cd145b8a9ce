"""check_model: can the target run this converted model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import NotCalibratedError, UnsupportedOpError
from profiler.quant.deploy.cost_model import NOTE, time_us
from profiler.quant.deploy.float_ops import float_ops_between
from profiler.quant.deploy.guards import integer_modules, require_converted, require_eval_module, target_march
from profiler.quant.deploy.layers import LayerFact, collect_layers
from profiler.quant.march import March
from profiler.quant.march_table import OUTPUT_ONLY, unsupported_reason
from profiler.quant.wrapping import skipped_texts, skipping

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """Why an op cannot run on the target: op name, reason, line of the user's code."""

    op: str
    reason: str
    source: str

    def __str__(self) -> str:
        return f"{self.op}: {self.reason} [{self.source}]" if self.source else f"{self.op}: {self.reason}"


def check_model(
    module: nn.Module,
    example_inputs: Any,
    march: March | str | None = None,
    input_source: Any = "ddr",
    advice: float | None = None,
    check_quanti_param: bool = True,
) -> int:
    """Check a converted model against the op table of a march, by one forward; float ops in its middle are problems.

    Args:
        module: converted model in eval, or `torch.jit.trace` of one (then only the forward and its operators).
        example_inputs: a tensor, a tuple or list of inputs, or a dict by parameter name; any device.
        march: target; the one that is set by default.
        input_source: accepted; where the inputs come from does not change what the target can run.
        advice: also log the ops that take longer than so many microseconds by our cost model.
        check_quanti_param: also check that every scale is a positive finite number.

    Returns:
        0 if the target can run it, else the number of problems; each is logged with op, reason and source line.

    Raises:
        ModelError: not a converted model.
        StateError: training mode or live observers.
    """
    with skipping() as skipped:
        problems = find_problems(module, example_inputs, march, check_quanti_param=check_quanti_param, advice=advice)
    for text in skipped_texts(skipped):
        _LOG.warning("check_model: %s", text)
    for problem in problems:
        _LOG.error("check_model: %s", problem)
    if not problems:
        _LOG.info("check_model: %s can run this model. %s", target_march(march).value, NOTE)
    return len(problems)


def find_problems(
    module: nn.Module,
    example_inputs: Any,
    march: March | str | None = None,
    *,
    check_quanti_param: bool = True,
    advice: float | None = None,
) -> list[Problem]:
    """What `check_model` counts."""
    target = target_march(march)
    require_eval_module(module, "check_model")
    problems = _scale_problems(module) if check_quanti_param else []
    if problems:
        return problems
    try:
        require_converted(module, "check_model")
        layers = collect_layers(module, example_inputs)
    except (UnsupportedOpError, NotCalibratedError) as error:
        return [Problem("forward", str(error), "")]
    found: dict[str, Problem] = {}
    for layer in layers:
        reason = _reason(layer, target) or _simple_target_reason(layer, target, layers)
        if reason and layer.op_name not in found:
            found[layer.op_name] = Problem(layer.name, reason, layer.source)
    for layer, reason in float_ops_between(layers):
        found.setdefault(layer.op_name, Problem(layer.name, reason, layer.source))
    _advise(layers, target, advice)
    return list(found.values())


def _reason(layer: LayerFact, march: March) -> str:
    """Why the target cannot run an op, or ""; for float ops see `float_ops_between`."""
    if not layer.is_quantized:
        return ""
    quantized = [t.dtype for t in layer.inputs if t.dtype.startswith("q") or t.dtype == "torch.float32"]
    output = layer.outputs[0].dtype if layer.outputs else ""
    if layer.operator == "" and not any(t.dtype.startswith("q") for t in layer.outputs):
        return ""
    operator = layer.operator or layer.kind.rpartition(".")[2]
    known = output if output.startswith("q") or output == "torch.float32" else ""
    reason = unsupported_reason(march, operator, quantized, known, layer.module)
    return reason or _rank_reason(layer, march)


def _rank_reason(layer: LayerFact, march: March) -> str:
    if march not in (March.BERNOULLI, March.BERNOULLI2) or layer.operator in ("shape", "quant_stub", "dequant_stub"):
        return ""
    ranks = {len(t.shape) for t in layer.inputs if t.dtype.startswith("q")} - {4}
    return f"{march.value} has 4-d tensors only, got {min(ranks)}-d" if ranks else ""


def _simple_target_reason(layer: LayerFact, march: March, layers: list[LayerFact]) -> str:
    """Limits of the BERNOULLI family that one op's dtypes do not show: scales of a cat, who reads an index."""
    if march is March.BERNOULLI and layer.operator in ("cat", "stack") and len(set(layer.input_scales)) > 1:
        scales = ", ".join(f"{scale:.6g}" for scale in layer.input_scales)
        return (
            f"bernoulli has {layer.operator} of operands with one scale, got {scales}; give their ops one fixed scale "
            "(FixedScaleObserver)"
        )
    is_maximum = layer.operator == "maximum" and len(layer.input_scales) == 1  # of one tensor, not of two
    if march not in (March.BERNOULLI, March.BERNOULLI2) or not (is_maximum or layer.operator in OUTPUT_ONLY):
        return ""
    reader = next((r for r in layers if layer.name in r.producers and r.operator != "dequant_stub"), None)
    return "" if reader is None else f"{march.value} has {layer.operator} as model output only; {reader.name} reads it"


def _scale_problems(module: nn.Module) -> list[Problem]:
    problems = []
    for name, op in integer_modules(module).items():
        scale = getattr(op, "out_scale", None)
        if isinstance(scale, Tensor) and scale.numel() and not bool((torch.isfinite(scale) & (scale > 0)).all()):
            reason = f"scale {scale.tolist()} is not a positive finite number; calibrate again, then convert"
            problems.append(Problem(name, reason, ""))
    return problems


def _advise(layers: list[LayerFact], march: March, advice: float | None) -> None:
    if advice is None:
        return
    slow = [(time_us(layer, march), layer) for layer in layers]
    slow = [(time, layer) for time, layer in slow if time > advice]
    for time, layer in sorted(slow, key=lambda item: -item[0]):
        _LOG.warning("check_model: %s takes about %.1f us on %s [%s]", layer.name, time, march.value, layer.source)
    _LOG.info("check_model: %d of %d ops above %g us. %s", len(slow), len(layers), advice, NOTE)
