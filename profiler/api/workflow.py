"""The first form: from one model and data to a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from profiler.api.options import Options, chosen_march, require_writable
from profiler.api.report_data import write_run
from profiler.capture.assemble import comparison_record
from profiler.capture.lockstep import PairRun, run_pair
from profiler.capture.stage import Stage
from profiler.capture.state_facts import state_record
from profiler.errors import ModelError, NotCalibratedError, UnsupportedOpError
from profiler.profile_report import ProfileReport
from profiler.quant.batches import Batch, take_batches
from profiler.quant.calibrating import run_forward
from profiler.quant.eager.convert import convert
from profiler.quant.policy import state_policy
from profiler.quant.quantize import as_network, calibrated_stages
from profiler.quant.states import FakeQuantState, named_fake_quants, set_fake_quantize
from profiler.quant.swap import LEAVES_ATTRIBUTE, copy_in_eval, is_converted
from profiler.quant.usable import require_usable_weights
from profiler.records import StageMetric, StateRecord


def profile_model(model: nn.Module, data: Any, options: Options) -> ProfileReport:
    """Float or prepared model and data to a report; see `model_profiler`."""
    is_prepared = any(True for _ in named_fake_quants(model))
    if is_converted(model):
        raise ModelError(
            "the model is a converted (integer) model alone; pass the calib or qat model that it was made from"
        )
    require_usable_weights(model)
    batches = take_batches(data, model, options.num_batches, options.batch_process_func)
    require_writable(options.out_dir)
    with chosen_march(options.march) as note:
        run = _profile_prepared if is_prepared else _profile_float
        return run(model, batches.items, options, (note, *batches.notes))


def _profile_float(
    model: nn.Module, batches: Sequence[Batch], options: Options, notes: tuple[str, ...]
) -> ProfileReport:
    known: tuple[StageMetric, ...] = ()
    if options.evaluate is not None:  # the data must fit before anything is evaluated
        run_forward(as_network(copy_in_eval(model)), batches[0], "float", 0)
        known = evaluate_stages({"float": copy_in_eval(model)}, options)
    stages = calibrated_stages(model, batches, options.qconfig_dict, frontend=options.frontend, tell=options.tell)
    return _compare_and_write(
        model, stages.float, stages.calib, "calib", batches, options, (*notes, *stages.notes), known=known
    )


def _profile_prepared(
    model: nn.Module, batches: Sequence[Batch], options: Options, notes: tuple[str, ...]
) -> ProfileReport:
    state = state_record(model)
    reference, test = copy_in_eval(model), copy_in_eval(model)
    with state_policy("ignore"):
        set_fake_quantize(reference, FakeQuantState._FLOAT)
        set_fake_quantize(test, FakeQuantState.VALIDATION)
    stage = "qat" if state is not None and state.purpose == "qat" else "calib"
    note = "float is the same model with fake quant off"
    return _compare_and_write(model, reference, test, stage, batches, options, (*notes, note), state=state)


def _compare_and_write(
    model: nn.Module,
    reference: nn.Module,
    test: nn.Module,
    stage: str,
    batches: Sequence[Batch],
    options: Options,
    notes: tuple[str, ...],
    state: StateRecord | None = None,
    known: tuple[StageMetric, ...] = (),
) -> ProfileReport:
    """FvsQ, convert, QvsQ, metrics on all stages, report; `state` is that of a model which the user prepared."""
    leaves = frozenset(getattr(test, LEAVES_ATTRIBUTE, ()))
    first = compare_stages(("float", reference), (stage, test), batches, options, leaves)
    comparisons = [comparison_record(first, "FvsQ")]
    more_notes = [*notes, _worst_batch(first)]
    stages = {"float": reference, stage: test}
    quantized = _convert(test, more_notes)
    if quantized is not None:
        try:
            second = compare_stages((stage, test), ("quantized", quantized), batches, options, leaves)
            comparisons.append(comparison_record(second, "QvsQ"))
            stages["quantized"] = quantized
        except UnsupportedOpError as error:
            more_notes.append(f"the converted model does not run, so it was not compared: {error}")
    return write_run(
        model,
        comparisons,
        options,
        batches=batches,
        prepared=test if state is None else model,
        state=state,
        stage_metrics=evaluate_stages(stages, options, known, more_notes),
        notes=more_notes,
    )


def compare_stages(
    reference: tuple[str, nn.Module],
    test: tuple[str, nn.Module],
    batches: Sequence[Batch],
    options: Options,
    leaves: frozenset[str] = frozenset(),
) -> PairRun:
    """Run two named models in step."""
    step = f"compare {reference[0]} with {test[0]}"
    return run_pair(Stage(*reference), Stage(*test), batches, extra_leaves=leaves, progress=options.progress, step=step)


def evaluate_stages(
    stages: dict[str, nn.Module], options: Options, known: tuple[StageMetric, ...] = (), notes: list[str] | None = None
) -> tuple[StageMetric, ...]:
    """The user's metric on each stage; on those of `known` it is known already.

    Args:
        stages: models by name.
        options: holds `evaluate`.
        known: what was measured before.
        notes: takes the failures of stages after the first; without it they are raised.

    Raises:
        ModelError: `evaluate` raised, or returned no number.
    """
    if options.evaluate is None:
        return ()
    results = {metric.stage: metric for metric in known}
    left = {name: model for name, model in stages.items() if name not in results}
    for index, (name, model) in enumerate(left.items()):
        options.tell("evaluate", index, len(left))
        try:
            results[name] = StageMetric(name, _evaluate(options.evaluate, name, model))
        except ModelError as error:
            if notes is None or not results:
                raise
            notes.append(str(error))
    if left:
        options.tell("evaluate", len(left), len(left))
    return tuple(results.values())


def _evaluate(evaluate: Callable[[nn.Module], Any], name: str, model: nn.Module) -> float:
    model.eval()
    try:
        with torch.no_grad(), state_policy("ignore"):
            value = evaluate(model)
    except Exception as error:
        raise ModelError(
            f"evaluate raised {type(error).__name__} on the {name} model: {error}; it must take a model and return "
            "a number"
        ) from error
    finally:
        model.eval()
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise ModelError(f"evaluate returned {value!r} ({type(value).__name__}) on the {name} model; expected a number")
    return _finite(value, name)


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"evaluate returned {value!r} on the {name} model; expected one number ({error})") from error
    if not math.isfinite(number):
        raise ModelError(f"evaluate returned {number} on the {name} model; expected a finite number")
    return number


def _convert(test: nn.Module, notes: list[str]) -> nn.Module | None:
    """The integer model, or None with a note where scales are missing."""
    try:
        return convert(test)
    except NotCalibratedError as error:
        notes.append(f"not converted: {error}")
        return None


def _worst_batch(run: PairRun) -> str:
    errors = run.batch_output_error
    if len(errors) < 2:
        return ""
    worst = max(range(len(errors)), key=errors.__getitem__)
    return (
        f"batch {worst} of {len(errors)} has the largest relative output error ({errors[worst]:.3g}; median "
        f"{sorted(errors)[len(errors) // 2]:.3g})"
    )
