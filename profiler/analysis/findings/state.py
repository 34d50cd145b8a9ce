"""ST: the model is in a state whose results are silently wrong."""

from __future__ import annotations

from collections.abc import Iterator

from profiler.analysis import fixes
from profiler.analysis.context import Context
from profiler.analysis.findings.registry import rule
from profiler.records import Evidence, Finding, StateRecord

_AGAIN = "first prepare the float model again: a new calibration is averaged with what this one has observed"


@rule("ST1")
def qat_instead_of_calibration(context: Context) -> Iterator[Finding]:
    """Scales were observed in the QAT state, though nothing was trained."""
    state = context.state
    if state is None or state.observed_qat == 0 or state.observed_calibration > 0 or _has_event(state, "CALIBRATION"):
        return
    if state.purpose == "calib" or not state.has_backward_run:
        yield Finding(
            id="ST1",
            title="This was QAT mode, not calibration",
            severity="E",
            op="",
            advice=(
                "Call model.eval() first, then set_fake_quantize(model, FakeQuantState.CALIBRATION), then "
                "run the batches: "
                "in train() BatchNorm and dropout were live and values were rounded while they were observed."
            ),
            cost="0",
            evidence=(
                Evidence("batches observed in QAT", state.observed_qat, "batches", "0 for a calibration"),
                Evidence("batches observed in CALIBRATION", 0, "batches", "> 0"),
                Evidence("qconfig purpose", state.purpose or "unknown"),
                Evidence("backward pass ran", "yes" if state.has_backward_run else "no"),
            ),
            patch=fixes.calibrate(first=_AGAIN),
        )


@rule("ST2")
def never_calibrated(context: Context) -> Iterator[Finding]:
    """No scale is known, because nothing was calibrated on this object."""
    state = context.state
    if state is None or not _nothing_calibrated(state) or _was_eval_in_calibration(state):
        return
    if _has_event(state, "CALIBRATION"):
        title = "No scale is known: no batch was run in the CALIBRATION state"
    elif state.events:
        title = "No scale is known: the CALIBRATION state was never set"
    else:
        title = "No scale is known: set_fake_quantize was never called"
    yield Finding(
        id="ST2",
        title=title,
        severity="E",
        op="",
        advice="After model.eval() call set_fake_quantize(model, FakeQuantState.CALIBRATION) and run batches; all "
        "scales are still 1. If another process calibrated: load its state_dict; if that one holds no "
        "scales, eval() was called after CALIBRATION there.",
        cost="0",
        evidence=_uncalibrated_evidence(state),
        patch=fixes.calibrate(),
    )


@rule("ST3")
def eval_after_calibration_state(context: Context) -> Iterator[Finding]:
    """CALIBRATION was set, but the fake quants were in eval while batches ran."""
    state = context.state
    if state is None or not _nothing_calibrated(state) or not _was_eval_in_calibration(state):
        return
    yield Finding(
        id="ST3",
        title="Nothing was observed: eval() was called after the CALIBRATION state was set",
        severity="E",
        op="",
        advice="Call model.eval() before set_fake_quantize(model, FakeQuantState.CALIBRATION), not between it and "
        "the batches: eval() also puts the fake quants into eval, and then they observe nothing. (No batch "
        "at all looks the same: check that the data loader was not empty.)",
        cost="0",
        evidence=(
            *_uncalibrated_evidence(state),
            Evidence("fake quants in training mode", 0, "fake quants", "all"),
        ),
        patch=fixes.calibrate(),
    )


@rule("ST4")
def evaluated_without_fake_quant(context: Context) -> Iterator[Finding]:
    """The model as given computes in float: its accuracy is float accuracy."""
    state = context.state
    if state is None or _nothing_calibrated(state):
        return
    if state.num_fake_quant_on == 0 and state.num_observer_on > 0:
        yield Finding(
            id="ST4",
            title="Fake quant is off: accuracy measured in this state is float accuracy",
            severity="E",
            op="",
            advice=(
                "Call model.eval() and set_fake_quantize(model, FakeQuantState.VALIDATION) before you "
                "evaluate; until then the "
                "loss shows up only after convert. This report was made on a copy in VALIDATION."
            ),
            cost="0",
            evidence=(
                Evidence("activation fake quants on", 0, "fake quants", f"{state.num_activations}"),
                Evidence("observers on", state.num_observer_on, "observers", "0"),
            ),
            patch=fixes.validate(),
        )


@rule("ST5")
def called_but_uncalibrated(context: Context) -> Iterator[Finding]:
    """Some ops run with scale 1 because calibration never reached them."""
    state = context.state
    if state is None or _nothing_calibrated(state):
        return
    uncalibrated = frozenset(state.uncalibrated)
    missing = [name for name in dict.fromkeys(x.op_name for x in context.layers) if name in uncalibrated]
    if missing:
        yield Finding(
            id="ST5",
            title=f"{_count(len(missing))} without a scale, the others are calibrated",
            severity="E",
            op=missing[0],
            advice=(
                "The branch that holds them did not run during calibration: calibrate again with data that reaches it."
            ),
            cost="C",
            evidence=(
                Evidence("uncalibrated ops that run", ", ".join(missing[:10])),
                Evidence("uncalibrated", len(missing), f"of {state.num_activations} activations", "0"),
            ),
            patch=fixes.calibrate(missing, first=_AGAIN),
        )


def _count(number: int) -> str:
    return "1 op runs" if number == 1 else f"{number} ops run"


def _was_eval_in_calibration(state: StateRecord) -> bool:
    """Whether CALIBRATION was set, and no fake quant is in training mode as it left them."""
    return state.num_training == 0 and (_has_event(state, "CALIBRATION") or _is_calibration_state(state))


def _has_event(state: StateRecord, name: str) -> bool:
    return any(event == name for event, _ in state.events)


def _nothing_calibrated(state: StateRecord) -> bool:
    return state.num_activations > 0 and len(state.uncalibrated) == state.num_activations


def _is_calibration_state(state: StateRecord) -> bool:
    return state.num_observer_on > 0 and state.num_fake_quant_on == 0


def _uncalibrated_evidence(state: StateRecord) -> tuple[Evidence, ...]:
    return (Evidence("activations without a scale", len(state.uncalibrated), f"of {state.num_activations}", "0"),)
