"""The second form: two given stages of a model on one batch."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from profiler.api.options import Options, chosen_march, require_writable
from profiler.api.report_data import write_run
from profiler.api.workflow import compare_stages, evaluate_stages
from profiler.capture.assemble import comparison_record
from profiler.capture.state_facts import state_record
from profiler.errors import ConfigError
from profiler.profile_report import ProfileReport
from profiler.quant.batches import take_batches
from profiler.quant.policy import state_policy
from profiler.quant.states import FakeQuantState, set_fake_quantize
from profiler.quant.swap import LEAVES_ATTRIBUTE, copy_in_eval, is_prepared
from profiler.quant.usable import require_usable_weights
from profiler.records import Mode

TOOLS = (
    "featuremap_similarity",
    "get_raw_features",
    "profile_featuremap",
    "get_module_called_count",
    "check_unfused_operations",
    "compare_weights",
    "check_qconfig",
)
_STAGES: dict[str, tuple[str, str]] = {
    "FvsQ": ("float", "calib"),
    "QvsQ": ("qat", "quantized"),
    "CvsQ": ("calib", "qat"),
}


def profile_pair(
    model1: nn.Module,
    model2: nn.Module,
    example_inputs: Any,
    mode: str | None,
    options: Options,
    kwargs_dict: dict[str, Any],
) -> ProfileReport:
    """Compare two stages on one batch; see `model_profiler`."""
    _check_arguments(model1, model2, example_inputs, mode, kwargs_dict)
    if options.qconfig_dict is not None:
        raise ConfigError("qconfig_dict prepares a float model; both models of this form are given: leave it out")
    assert mode is not None
    for model in (model1, model2):
        require_usable_weights(model)
    batches = take_batches([example_inputs], model1, 1, options.batch_process_func)
    require_writable(options.out_dir)
    prepared = model2 if mode != "QvsQ" else model1
    state = state_record(prepared)
    reference, test = copy_in_eval(model1), copy_in_eval(model2)
    for copied in (reference, test):
        _evaluate_state(copied)
    notes = list(batches.notes)
    if mode == "CvsQ":
        notes.append("weights moved between calib and qat: read the similarities with care")
    with chosen_march(options.march) as note:
        leaves = frozenset(getattr(test, LEAVES_ATTRIBUTE, ()))
        names = _STAGES[mode]
        run = compare_stages((names[0], reference), (names[1], test), batches.items, options, leaves)
        modes: dict[str, Mode] = {name: name for name in get_args(Mode)}
        comparison = comparison_record(run, modes[mode], tuple(notes))
        return write_run(
            model1,
            [comparison],
            options,
            batches=batches.items,
            prepared=prepared,
            state=state if mode != "QvsQ" else None,
            stage_metrics=evaluate_stages({names[0]: reference, names[1]: test}, options),
            notes=(note, *notes),
        )


def _evaluate_state(model: nn.Module) -> None:
    """A copy of a prepared model is compared with fake quant on, whatever state it was given in."""
    if is_prepared(model):
        with state_policy("ignore"):
            set_fake_quantize(model, FakeQuantState.VALIDATION)


def _check_arguments(
    model1: nn.Module, model2: nn.Module, example_inputs: Any, mode: str | None, kwargs_dict: dict[str, Any]
) -> None:
    if mode not in _STAGES:
        raise ConfigError(
            f"mode is {mode!r}; expected 'FvsQ' (float, calib or qat), 'QvsQ' (qat, quantized) or 'CvsQ' (calib, qat)"
        )
    if example_inputs is None:
        raise ConfigError("example_inputs is missing; pass one batch of real data")
    unknown = [key for key in kwargs_dict if key not in TOOLS]
    if unknown:
        raise ConfigError(f"kwargs_dict has unknown tools {unknown}; the legal ones are {', '.join(TOOLS)}")
    for tool, arguments in kwargs_dict.items():
        if arguments:
            raise ConfigError(f"kwargs_dict[{tool!r}]: arguments {sorted(arguments)} are not supported; pass none")
    has_fake_quants = [is_prepared(m) for m in (model1, model2)]
    expected = {"FvsQ": [False, True], "QvsQ": [True, False], "CvsQ": [True, True]}[mode]
    if has_fake_quants != expected:
        got = ", ".join("prepared (has fake quants)" if has else "no fake quants" for has in has_fake_quants)
        want = ", ".join("prepared (has fake quants)" if has else "no fake quants" for has in expected)
        raise ConfigError(f"mode {mode}: the two models are ({got}); expected ({want}), in forward order of the stages")
