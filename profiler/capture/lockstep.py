"""Runs two stages on the same batches and reduces each pair of outputs to sums, op by op."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _pop_mode_temporarily

from profiler.capture.hooks import OpCall, Recorder, recording
from profiler.capture.pairing import Pairing, Partner
from profiler.capture.stage import OpFacts, Stage, real_values
from profiler.errors import ProfilerError
from profiler.metrics.difference import PairSums
from profiler.metrics.distribution import QuantErrorSums
from profiler.quant.batches import Batch
from profiler.quant.calibrating import forward_error
from profiler.quant.ops.functional import tensors_in
from profiler.quant.ops.gemm import Gemm
from profiler.quant.policy import state_policy
from profiler.quant.qtensor import QTensor
from profiler.records import Status

Progress = Callable[[str, int, int], None]
_NESTS = (Tensor, tuple, list, dict)


@dataclass
class OpPair:
    """Sums of one test op call against its reference."""

    status: Status
    reason: str = ""
    reference_names: tuple[str, ...] = ()
    num_compared: int = 0
    num_problems: int = 0
    accumulated: PairSums = field(default_factory=PairSums)
    injected: PairSums = field(default_factory=lambda: PairSums(has_distribution=False))
    injected_reason: str = ""
    quant_error: QuantErrorSums = field(default_factory=QuantErrorSums)

    def note_compared(self, names: tuple[str, ...]) -> None:
        """A batch on which the op was compared: one is enough for a row with numbers."""
        self.num_compared += 1
        self.status, self.reference_names = "compared", names
        if not self.num_problems:
            self.reason = ""

    def note_problem(self, status: Status, reason: str) -> None:
        """A batch on which it could not be compared."""
        self.num_problems += 1
        if self.num_compared == 0:
            self.status = status
        self.reason = reason


@dataclass
class PairRun:
    """Two stages after all batches."""

    reference: Stage
    test: Stage
    pairs: dict[str, OpPair]
    outputs: list[PairSums]
    output_producers: list[str | None]
    batch_output_error: list[float]


def run_pair(
    reference: Stage,
    test: Stage,
    batches: Sequence[Batch],
    *,
    extra_leaves: frozenset[str] = frozenset(),
    progress: Progress | None = None,
    step: str = "compare",
) -> PairRun:
    """Run both stages on each batch in turn and compare every op call.

    Args:
        reference: stage nearer to float; its model is in eval.
        test: stage nearer to deployment; its model is in eval.
        batches: arguments of the forwards.
        extra_leaves: module paths that are one op in both stages.
        progress: told `(step, done, total)`.
        step: what to call this run there.

    Raises:
        ModelError, DataError: a forward raised; the message names the batch and the op.
    """
    run = PairRun(reference, test, {}, [], [], [])
    with torch.no_grad(), state_policy("ignore"):
        for index, batch in enumerate(batches):
            if progress is not None:
                progress(step, index, len(batches))
            _BatchPair(run, batch, index, extra_leaves).run()
    if progress is not None:
        progress(step, len(batches), len(batches))
    return run


def forward_recorded(stage: Stage, batch: Batch, index: int, recorder: Recorder, *, is_first: bool) -> Any:
    """One recorded forward.

    Args:
        stage: whose model runs.
        batch: its arguments.
        index: number of the batch.
        recorder: what to tell of each op call.
        is_first: no other stage has run this batch: if it fails, the batch or the model is to blame.

    Raises:
        DataError, ModelError, PrepareError: the forward raised; see `forward_error`.
    """
    try:
        with recording(recorder):
            result = batch.run(stage.model)
    except ProfilerError:
        raise
    except Exception as error:
        if recorder.own_error is not None:
            raise
        raise forward_error(stage.name, index, batch, error, recorder.current, is_first=is_first) from error
    if recorder.own_error is not None:
        raise recorder.own_error
    return result


class _BatchPair:
    """Both forwards of one batch: the reference's outputs wait here until the test op that needs them."""

    def __init__(self, run: PairRun, batch: Batch, index: int, extra_leaves: frozenset[str]) -> None:
        self.run_sums, self.batch, self.index = run, batch, index
        self.extra_leaves = extra_leaves
        self.facts: dict[str, OpFacts] = {}
        self.calls: dict[str, OpCall] = {}
        self.parameters: dict[str, list[nn.Parameter | None]] = {}  # among each call's inputs
        self.values: dict[str, list[Tensor]] = {}
        self.by_storage: dict[int, list[tuple[str, int]]] = {}
        self.pairing = Pairing(self.facts)

    def run(self) -> None:
        """Reference forward, then test forward, then the models' outputs."""
        reference, test = self.run_sums.reference, self.run_sums.test
        recorder = Recorder(
            reference.model, self._reference_call, self._save_before, self.extra_leaves, known=reference.facts
        )
        with torch.random.fork_rng(devices=[]):  # both forwards draw the same random numbers (on the CPU)
            expected = forward_recorded(reference, self.batch, self.index, recorder, is_first=True)
        test_recorder = Recorder(test.model, self._test_call, None, self.extra_leaves, known=test.facts)
        actual = forward_recorded(test, self.batch, self.index, test_recorder, is_first=False)
        reference.count_calls(recorder.called, self.extra_leaves)
        test.count_calls(test_recorder.called, self.extra_leaves)
        self._compare_outputs(expected, actual, test_recorder)

    def _reference_call(self, call: OpCall) -> None:
        self.run_sums.reference.add(call)
        self.facts[call.name] = self.run_sums.reference.facts[call.name]
        self.calls[call.name] = OpCall(**{**vars(call), "inputs": [], "outputs": []})
        self.parameters[call.name] = [t if isinstance(t, nn.Parameter) else None for t in call.inputs]
        self.values[call.name] = [real_values(t).detach() for t in call.outputs]
        for i, tensor in enumerate(self.values[call.name]):
            if tensor.layout is torch.strided:
                self.by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append((call.name, i))

    def _save_before(self, inputs: list[Tensor]) -> None:
        """An in-place op is about to run: saved values that share memory with its inputs are copied first."""
        for tensor in inputs:
            shared = tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else None
            for name, i in self.by_storage.get(shared, []) if shared is not None else []:
                self.values[name][i] = self.values[name][i].clone()

    def _test_call(self, call: OpCall) -> None:
        test = self.run_sums.test
        test.add(call)
        facts = test.facts[call.name]
        pair = self.run_sums.pairs.get(call.name)
        partner = self.pairing.partner(facts)
        if pair is None:
            pair = self.run_sums.pairs[call.name] = OpPair("compared", reference_names=partner.names)
        if facts.is_pass_through:
            pair.status, pair.reason = "fused", "passes its input on: fused into the op before it"
            return
        expected = self._expected(call, partner)
        outputs = [real_values(t) for t in call.outputs]
        problem = _mismatch(expected, outputs, partner)
        if problem is not None:
            pair.note_problem(*problem)
            return
        assert expected is not None
        pair.note_compared(partner.names)
        for r, t in _float_pairs(expected, outputs):
            pair.accumulated.update(reference=r, test=t)
        for r, made in zip(expected, call.outputs, strict=True):
            _add_quant_error(pair.quant_error, r, made)
        self._inject(call, partner, pair, outputs)

    def _expected(self, call: OpCall, partner: Partner) -> list[Tensor] | None:
        if partner.names:
            return self.values.get(partner.names[-1])
        return [real_values(t) for t in call.inputs[:1]] if partner.is_input else None

    def _inject(self, call: OpCall, partner: Partner, pair: OpPair, outputs: list[Tensor]) -> None:
        """Run the reference op on the test op's own input: what differs is this op's own error."""
        try:
            with torch.random.fork_rng(devices=[]):
                again = self._rerun(call, partner)
        except Exception as error:
            pair.injected_reason = (
                f"the reference op could not run again on the test input: {type(error).__name__}: {error}"
            )
            return
        if again is None or [a.shape for a in again] != [o.shape for o in outputs]:
            pair.injected_reason = "the test op has other inputs than the reference op"
            return
        for r, t in _float_pairs(again, outputs):
            pair.injected.update(reference=r, test=t)

    def _rerun(self, call: OpCall, partner: Partner) -> list[Tensor] | None:
        if partner.is_input or self._is_automatic_stub(call, partner):
            return [real_values(t) for t in call.inputs[:1]]
        rest = list(call.inputs)
        value: list[Tensor] = []
        for position, name in enumerate(partner.names):
            reference = self.calls[name]
            tensors: list[Tensor] = []
            for own, producer in zip(self.parameters[name], reference.producers, strict=True):
                if own is not None and isinstance(call.module, Gemm):
                    tensors.append(own)  # F.conv2d(x, w): the test op has the weight inside
                    continue
                follows = position > 0 and producer == partner.names[position - 1]
                if not follows and not rest:
                    return None
                tensors.append(value[0] if follows else _as_input(rest.pop(0), reference))
            if reference.overwrites:  # the test model's tensors must stay as they are
                tensors = [t.clone() for t in tensors]
            with _outside_of_the_model():
                value = tensors_in(reference.rerun(tensors))
        return [real_values(t) for t in value] if not rest else None

    def _is_automatic_stub(self, call: OpCall, partner: Partner) -> bool:
        return self.run_sums.test.facts[call.name].is_stub and not self.facts[partner.names[-1]].is_stub

    def _compare_outputs(self, expected: Any, actual: Any, recorder: Recorder) -> None:
        references, tests = tensors_in(_plain_nest(expected)), tensors_in(_plain_nest(actual))
        run = self.run_sums
        error = signal = 0.0
        for i, (r, t) in enumerate(zip(references, tests, strict=False)):
            if i >= len(run.outputs):
                run.outputs.append(PairSums())
                run.output_producers.append(recorder.producer_of(t))
            r, t = real_values(r), real_values(t)
            if r.shape == t.shape and _is_dense_float(r) and _is_dense_float(t):
                sums = run.outputs[i]
                error, signal = error - sums.error_squared, signal - sums.reference_squared
                sums.update(reference=r, test=t)
                error, signal = error + sums.error_squared, signal + sums.reference_squared
        run.batch_output_error.append(error / signal if signal > 0 else error)


@contextmanager
def _outside_of_the_model() -> Iterator[None]:
    """An op that runs again from inside a hook: quantized values work as ever, nobody who follows a model sees it."""
    with ExitStack() as stack:
        while torch._C._len_torch_function_stack():
            stack.enter_context(_pop_mode_temporarily())
        stack.enter_context(torch._C._EnableTorchFunction())
        yield


def _mismatch(expected: list[Tensor] | None, outputs: list[Tensor], partner: Partner) -> tuple[Status, str] | None:
    """Why a pair cannot be compared, or None."""
    if expected is None:
        return "unmatched", partner.reason or f"the reference op {', '.join(partner.names)} did not run on this batch"
    if [tuple(e.shape) for e in expected] != [tuple(o.shape) for o in outputs]:
        shapes = f"{[tuple(e.shape) for e in expected]} against {[tuple(o.shape) for o in outputs]}"
        return "shape_mismatch", f"mismatch shape: {shapes}"
    if not _float_pairs(expected, outputs):
        is_sparse = any(o.layout is not torch.strided for o in outputs)
        what = "sparse output: not measured" if is_sparse else "integer or bool output: counted, not compared"
        return "unsupported", what
    return None


def _float_pairs(expected: list[Tensor], outputs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The outputs that can be compared by value; indices (of a max, say) cannot."""
    pairs = zip(expected, outputs, strict=True)
    return [(e, o) for e, o in pairs if _is_dense_float(e) and _is_dense_float(o)]


def _is_dense_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided


def _add_quant_error(sums: QuantErrorSums, reference: Tensor, made: Tensor) -> None:
    """What rounding to the scale of this very output costs; an op may give several, each with its own."""
    if isinstance(made, QTensor) and made.scale.numel() == 1 and _is_dense_float(reference):
        sums.update(reference, float(made.scale), made.info.quant_min, made.info.quant_max)


def _as_input(tensor: Tensor, reference: OpCall) -> Tensor:
    """A test input as the reference op takes it: real values, with a scale if the reference is a fake-quant op."""
    values = real_values(tensor)
    if isinstance(tensor, QTensor) and isinstance(reference.module, nn.Module) and _takes_qtensors(reference.module):
        return QTensor.wrap(values, tensor.scale, tensor.qdtype, tensor.ch_axis, tensor.is_rounded)
    return values


def _takes_qtensors(module: nn.Module) -> bool:
    return hasattr(module, "to_integer")


def _plain_nest(value: Any) -> Any:
    """Outputs of any kind as nests that can be walked: objects with fields become dicts."""
    if isinstance(value, dict):
        return {key: _plain_nest(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain_nest(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_plain_nest(getattr(value, f.name)) for f in dataclasses.fields(value)]
    fields = {} if isinstance(value, Tensor) or value is None else getattr(value, "__dict__", {})
    return {k: _plain_nest(v) for k, v in fields.items() if isinstance(v, _NESTS)} if fields else value
