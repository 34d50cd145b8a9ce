"""One forward of a copy of a model with nothing observed and nothing rounded: its op calls as facts and as a graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from profiler.quant.checking.facts import OpFacts, TensorFacts, cast_of, spec_of_call, tensor_facts
from profiler.quant.checking.graph import GraphRow, argument_text, tensor_text
from profiler.quant.deploy.follow import OpFollower, RunningOp, following
from profiler.quant.deploy.structure import bind_inputs, explained_inputs, flat_tensors, input_names, map_tensors
from profiler.quant.modules import Identity
from profiler.quant.ops.functional import tensors_in
from profiler.quant.overwriting import may_overwrite
from profiler.quant.policy import state_policy
from profiler.quant.states import named_fake_quants
from profiler.quant.swap import LEAVES_ATTRIBUTE, copy_in_eval

_MADE_BY = "_checked_producer"


@dataclass
class ModelRun:
    """What one forward did.

    Attributes:
        model: the copy that ran, with the modules that its first forward generated.
        facts: op calls by name, in forward order.
        called: path of a module -> runs.
        graph: inputs, op calls and output as rows of a graph.
        extra_leaves: paths of modules that count as one op.
    """

    model: nn.Module
    facts: dict[str, OpFacts] = field(default_factory=dict)
    called: Counter[str] = field(default_factory=Counter)
    graph: list[GraphRow] = field(default_factory=list)
    extra_leaves: frozenset[str] = frozenset()


def run_model(model: nn.Module, example_inputs: Any, keyword_inputs: dict[str, Any] | None = None) -> ModelRun:
    """Run a copy of a model in eval, observers and fake quants off; the model and its inputs stay as they are.

    The copy runs twice: functions of an eagerly prepared model get their modules in its first forward.

    Args:
        model: float or prepared model.
        example_inputs: a tensor, a tuple or list of inputs, or a dict by parameter name; None with `keyword_inputs`.
        keyword_inputs: inputs by name.
    """
    args, kwargs = bind_inputs(model, example_inputs, keyword_inputs)
    copied = copy_in_eval(model)
    devices = {t.device.index for t in (*copied.parameters(), *copied.buffers()) if t.device.type == "cuda"}
    explained = explained_inputs(model, example_inputs)
    with torch.no_grad(), torch.random.fork_rng(sorted(devices)), state_policy("ignore"), explained:
        _switch_off(copied)
        copied(*_cloned(args), **_cloned(kwargs))
        _switch_off(copied)
        return _Watch(copied).run(_cloned(args), _cloned(kwargs))


def _switch_off(model: nn.Module) -> None:
    for _, fake_quant in named_fake_quants(model):
        fake_quant.enable_observer(False)
        fake_quant.enable_fake_quant(False)


def _cloned(value: Any) -> Any:
    return map_tensors(value, lambda t: t.detach().clone())


@dataclass(frozen=True)
class _Started:
    """What is known of an op call before it runs."""

    operands: list[Tensor]
    inputs: tuple[TensorFacts, ...]
    producers: tuple[str | None, ...]
    args: str
    kwargs: str


class _Watch:
    """Notes each op call of one forward. Tensors carry the name of the call that made them, and its dtype."""

    def __init__(self, model: nn.Module) -> None:
        self.done = done = ModelRun(model, extra_leaves=frozenset(getattr(model, LEAVES_ATTRIBUTE, ())))
        self.follower = OpFollower(done.model, self.before, self.after, done.extra_leaves)
        self.started: list[_Started] = []
        self.stored = {id(t): name for name, t in (*done.model.named_parameters(), *done.model.named_buffers())}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModelRun:
        """Run the model once."""
        names = input_names(self.done.model, args, kwargs)
        for name, tensor in zip(names, flat_tensors(args, kwargs), strict=True):
            self._mark(tensor, name, "")
            self.done.graph.append(GraphRow("placeholder", name, name, "()", "{}"))
        with following(self.follower):
            result = self.done.model(*args, **kwargs)
        self.done.graph.append(GraphRow("output", "output", "output", self._text((result,)), "{}"))
        return self.done

    def before(self, running: RunningOp) -> None:
        """Note what goes in."""
        operands = tensors_in([running.args, running.kwargs])
        producers = tuple(self._producer(t) for t in operands)
        inputs = tuple(self._input(t) for t in operands)
        texts = self._text(tuple(running.args)), self._text(dict(running.kwargs))
        self.started.append(_Started(operands, inputs, producers, *texts))
        if running.module is not None:
            self.done.called[self.follower.names[id(running.module)]] += 1

    def after(self, running: RunningOp, result: Any) -> None:
        """Note what comes out."""
        started, module = self.started.pop(), running.module
        results = tensors_in(result)
        overwrites = module is not None and may_overwrite(module.forward, running.args, running.kwargs)
        written = started.operands[:1] if overwrites or running.kind == "torch.setitem" else []
        results = results or written  # x[i] = y gives nothing: what it wrote to is its output
        if not results:
            return
        passes = isinstance(module, (nn.Identity, nn.Dropout)) and any(
            r is o for r in results for o in started.operands
        )
        is_pass_through = passes or isinstance(module, Identity)
        facts = _op_facts(running, started, results, is_pass_through=is_pass_through)
        self.done.facts[running.name] = facts
        self.done.graph.append(_graph_row(running, started, self.follower.names))
        for tensor in [] if passes else [*written, *results]:
            self._mark(tensor, running.name, facts.outputs[0].dtype if cast_of(module) is not None else "")

    def _mark(self, tensor: Tensor, name: str, dtype: str) -> None:
        setattr(tensor, _MADE_BY, (self, name, dtype))

    def _made_by(self, tensor: Tensor) -> tuple[str, str] | None:
        found = getattr(tensor, _MADE_BY, None)
        return (found[1], found[2]) if found is not None and found[0] is self else None

    def _producer(self, tensor: Tensor) -> str | None:
        made_by = self._made_by(tensor)
        return made_by[0] if made_by is not None and made_by[0] in self.done.facts else None

    def _input(self, tensor: Tensor) -> TensorFacts:
        facts, made_by = tensor_facts(tensor), self._made_by(tensor)
        return replace(facts, dtype=made_by[1]) if made_by is not None and made_by[1] else facts

    def _text(self, value: Any) -> str:
        return argument_text(value, self._name)

    def _name(self, tensor: Tensor) -> str:
        made_by = self._made_by(tensor)
        return made_by[0] if made_by is not None else self.stored.get(id(tensor)) or tensor_text(tensor)


def _op_facts(running: RunningOp, started: _Started, results: list[Tensor], *, is_pass_through: bool) -> OpFacts:
    module, args = running.module, running.args
    method = args[0] if module is not None and args and isinstance(args[0], str) else ""
    call = 0 if running.name == running.op_name else int(running.name[len(running.op_name) + 1 : -1])
    outputs, cast = tuple(tensor_facts(t) for t in results), cast_of(module)
    if cast is not None:
        outputs = tuple(o if o.scale else replace(o, dtype=str(cast.dtype)) for o in outputs)
    return OpFacts(
        name=running.name,
        op_name=running.op_name,
        call=call,
        type_name=running.kind,
        method=method,
        module=module,
        spec=spec_of_call(module, running.op_name, method),
        inputs=started.inputs,
        outputs=outputs,
        producers=started.producers,
        fused_names=tuple(getattr(module, "fused_names", ())),
        source=running.source,
        is_pass_through=is_pass_through,
    )


def _graph_row(running: RunningOp, started: _Started, names: dict[int, str]) -> GraphRow:
    is_module = running.module is not None
    opcode = "call_module" if is_module else "call_function"
    target = names[id(running.module)] if is_module else running.kind
    return GraphRow(opcode, running.name, target, started.args, started.kwargs)
