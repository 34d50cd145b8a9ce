"""Recurrent layers: input products of all steps at once, then one integer step after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.modules import quantized_output
from profiler.quant.ops.composite import Composite, FakeQuantComposite, narrow_qconfig, on_scale_of, wide_qconfig
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, to_plain
from profiler.quant.states import named_fake_quants

Run = Callable[..., Any]
States = tuple[Any, ...]
_FLOAT: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "sigmoid": torch.sigmoid, "tanh": torch.tanh
}  # fmt: skip


@dataclass(frozen=True)
class StepKind:
    """One kind of recurrent step.

    Attributes:
        name: key in STEP_KINDS; modules keep the name, so that they can be copied and pickled.
        num_gates: rows of a weight per hidden unit.
        order: which of torch's gates stand where in our weights.
        functions: child name -> function, of every quantized function in a step.
        step: `(run, input products, states) -> states`; `run(name, *args)` runs a child.
        states: the child that writes each state.
        narrow: children with the dtype of the qconfig; the others are int16 where the march has it.
        shared_bias: how many of our gates add both biases to the input product; the rest keep their hidden one.
    """

    name: str
    num_gates: int
    order: tuple[int, ...]
    functions: dict[str, str]
    step: Callable[[Run, Any, States], States]
    states: tuple[str, ...]
    narrow: tuple[str, ...]
    shared_bias: int


def _lstm_step(run: Run, x: Any, states: States) -> States:
    """Gates i, f, o, g: `c = f c + i g`, `h = o tanh(c)`."""
    h, c = states
    gates = run("gates", x, run("hidden", h))
    size = 3 * h.shape[-1]
    i, f, o = run("sigmoid", gates[..., :size]).chunk(3, -1)
    c = run("cell", run("forget", f, c), run("update", i, run("tanh", gates[..., size:])))
    return run("out", o, run("cell_tanh", c)), c


def _gru_step(run: Run, x: Any, states: States) -> States:
    """Gates r, z, n: `n = tanh(x_n + r h_n)`, `h = n + z (h - n)`; the state between steps keeps int16."""
    h, state = states
    hidden, size = run("hidden", h), 2 * h.shape[-1]
    r, z = run("sigmoid", run("gates", x[..., :size], hidden[..., :size])).chunk(2, -1)
    n = run("tanh", run("candidate", x[..., size:], run("reset", r, hidden[..., size:])))
    state = run("state", n, run("update", z, run("difference", state, n)))
    return run("out", state, 0.0), state


def _tanh_step(run: Run, x: Any, states: States) -> States:
    """`h = tanh(x + h)`."""
    return (run("out", run("gates", x, run("hidden", states[0]))),)


def _relu_step(run: Run, x: Any, states: States) -> States:
    """`h = relu(x + h)`: the zero that is added gives the result its own scale."""
    return (run("out", F.relu(run("gates", x, run("hidden", states[0]))), 0.0),)


STEP_KINDS = {
    kind.name: kind
    for kind in (
        StepKind(
            "lstm", 4, (0, 1, 3, 2),
            {"gates": "add", "sigmoid": "sigmoid", "tanh": "tanh", "forget": "mul", "update": "mul", "cell": "add",
             "cell_tanh": "tanh", "out": "mul"},
            _lstm_step, ("out", "cell"), ("out",), 4,
        ),
        StepKind(
            "gru", 3, (0, 1, 2),
            {"gates": "add", "sigmoid": "sigmoid", "reset": "mul", "candidate": "add", "tanh": "tanh",
             "difference": "sub", "update": "mul", "state": "add", "out": "add"},
            _gru_step, ("out", "state"), ("out",), 2,
        ),
        StepKind("tanh", 1, (0,), {"gates": "add", "out": "tanh"}, _tanh_step, ("out",), ("out",), 1),
        StepKind("relu", 1, (0,), {"gates": "add", "out": "add"}, _relu_step, ("out",), ("out",), 1),
    )
}  # fmt: skip


class StepLoop(Composite):
    """One layer in one direction: children `input` and `hidden` (linears) and the functions of its kind."""

    stands_for = nn.RNNCellBase
    kind_name: str
    input: Any
    hidden: Any

    @property
    def kind(self) -> StepKind:
        """What a step does."""
        return STEP_KINDS[self.kind_name]

    def forward(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """All steps.

        Args:
            x: inputs `[T, N, I]`.
            states: each `[N, H]`; float ones are rounded to the scale that the steps write.

        Returns:
            Results `[T, N, H]`, and the states after the last step.
        """
        products = self.input(x)
        states = tuple(on_scale_of(self._modules[name], s) for name, s in zip(self.kind.states, states, strict=True))
        return self.run_steps(products, states)

    def run_steps(self, products: Tensor, states: States) -> tuple[Tensor, States]:
        """Every step through the children."""
        return _loop(self.kind, self.run_child, products.unbind(0), states)

    def run_child(self, name: str, *args: Any) -> Any:
        """Run one child."""
        child: Any = self._modules[name]
        return child(*args)


class FakeQuantStepLoop(StepLoop, FakeQuantComposite):
    """Steps with every inner value fake-quantized.

    Observers see each inner value of a whole sequence at once, from a float run of the recurrence: the average over
    the steps would cut off the steps with large values.
    """

    integer_class = StepLoop
    output = "out"

    def run_steps(self, products: Tensor, states: States) -> tuple[Tensor, States]:
        """Every step; where something observes, the float run comes first, and is the result unless values round."""
        fake_quants = [fq for _, fq in named_fake_quants(self)]
        weight = self.hidden.weight_fake_quant.quantize_weight(self.hidden.weight)
        is_rounding = any(fq.is_rounding for fq in fake_quants)
        if any(fq.is_observer_on and fq.training for fq in fake_quants):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not is_rounding):
                result = self._observed(weight, to_plain(products), to_plain(states))
            if not is_rounding:
                return result
        with self._without_observing():
            return _loop(self.kind, lambda name, *args: self._run(weight, name, *args), products.unbind(0), states)

    def _run(self, weight: Tensor, name: str, *args: Any) -> Any:
        """One child; the hidden product takes the weight that was fake-quantized once for all steps."""
        if name != "hidden":
            return self.run_child(name, *args)
        y = F.linear(to_plain(args[0]), weight, self.hidden.bias)
        return quantized_output(y, self.hidden.activation_post_process)

    def _observed(self, weight: Tensor, products: Tensor, states: States) -> tuple[Tensor, States]:
        """The float recurrence; each child's fake quant then sees its values of all steps."""
        values: dict[str, list[Tensor]] = defaultdict(list)

        def run(name: str, *args: Any) -> Tensor:
            hidden = name == "hidden"
            y = F.linear(args[0], weight, self.hidden.bias) if hidden else _FLOAT[self.kind.functions[name]](*args)
            values[name].append(y)
            return y

        _loop(self.kind, run, products.unbind(0), states)
        done = {n: quantized_output(torch.stack(v), self._fake_quant_of(n)) for n, v in values.items()}
        return done["out"], tuple(done[name][-1] for name in self.kind.states)

    def _fake_quant_of(self, name: str) -> Any:
        return self.get_submodule(name).activation_post_process

    @contextmanager
    def _without_observing(self) -> Iterator[None]:
        """Observers that have seen the sequence do not see its steps again."""
        observing = [fq for _, fq in named_fake_quants(self) if fq._is_observer_on and fq.training]
        for fake_quant in observing:
            fake_quant._is_observer_on = False
        try:
            yield
        finally:
            for fake_quant in observing:
                fake_quant._is_observer_on = True


def _loop(kind: StepKind, run: Run, steps: Any, states: States) -> tuple[Any, States]:
    outputs = []
    for x in steps:
        states = kind.step(run, x, states)
        outputs.append(states[0])
    stacked = torch.stack([to_plain(h) for h in outputs])
    return (states[0].like(stacked) if isinstance(states[0], QTensor) else stacked), states


def make_loop(
    kind_name: str,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor, Tensor] | None,
    qconfig: QConfig,
    like: nn.Module,
) -> FakeQuantStepLoop:
    """Fake-quant steps of torch's weights.

    Args:
        kind_name: what a step does.
        weights: input `[G * H, I]` and hidden `[G * H, H]`, gates in torch's order.
        biases: `[G * H]` of both, or None.
        qconfig: of the whole.
        like: gives device and training mode.
    """
    loop = FakeQuantStepLoop()
    loop.kind_name, kind = kind_name, STEP_KINDS[kind_name]
    narrow, wide = narrow_qconfig(qconfig), wide_qconfig(qconfig)
    input_weight, hidden_weight = (_reordered(w, kind) for w in weights)
    input_bias, hidden_bias = None, None
    if biases is not None:
        own, other = (_reordered(b, kind) for b in biases)
        shared = kind.shared_bias * own.shape[0] // kind.num_gates
        input_bias = own + torch.cat([other[:shared], torch.zeros_like(other[shared:])])
        if shared < own.shape[0]:
            hidden_bias = torch.cat([torch.zeros_like(other[:shared]), other[shared:]])
    loop.add_linear("input", input_weight, input_bias, wide, like)
    loop.add_linear("hidden", hidden_weight, hidden_bias, wide, like)
    for name, function in kind.functions.items():
        loop.add_function(name, function, narrow if name in kind.narrow else wide, like)
    loop.train(like.training)
    return loop


def _reordered(values: Tensor, kind: StepKind) -> Tensor:
    gates = values.chunk(kind.num_gates)
    return torch.cat([gates[i] for i in kind.order])
