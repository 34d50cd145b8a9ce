"""LSTM, GRU, RNN and their cells: layers, directions and states around the loops over steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from profiler.errors import UnsupportedOpError
from profiler.quant.ops.composite import Composite, FakeQuantComposite, narrow_qconfig, wide_qconfig
from profiler.quant.ops.recurrent import StepLoop, make_loop
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import to_float


class _Recurrent(Composite):
    """What layers and cells share."""

    kind_name: str
    label: str
    is_float_output: bool
    hidden_size: int

    def _get_name(self) -> str:
        return self.label

    def result(self, values: Any) -> Any:
        """Quantized results, or their real values where the qconfig has no activation."""
        return to_float(values) if self.is_float_output else values

    def given_states(self, hx: Any, shape: tuple[int, ...], x: Tensor) -> list[Any]:
        """The states as given, or zeros."""
        zeros = torch.zeros(shape, device=x.device)
        if self.kind_name == "lstm":
            return [zeros, zeros] if hx is None else list(hx)
        return [zeros if hx is None else hx]

    def loop_states(self, states: list[Any]) -> tuple[Any, ...]:
        """States of a loop: the GRU carries h twice, in the dtype of its results and wide."""
        return (states[0], states[0]) if self.kind_name == "gru" else tuple(states)


class _LayersForm(_Recurrent):
    """`nn.LSTM`, `nn.GRU`, `nn.RNN`: a loop `l<k>` or `l<k>_reverse` for each layer and direction."""

    stands_for = nn.RNNBase
    num_layers: int
    bidirectional: bool
    batch_first: bool
    dropout: float

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """As the torch module: results and last states.

        Raises:
            UnsupportedOpError: a PackedSequence.
        """
        if isinstance(input, PackedSequence):
            raise UnsupportedOpError(
                f"{self.label}: a PackedSequence has no quantized form; pad the sequences, or set qconfig = None here"
            )
        is_batched = input.dim() == 3
        x = input if is_batched else input.unsqueeze(1)
        if self.batch_first and is_batched:
            x = x.transpose(0, 1)
        num = self.num_layers * (2 if self.bidirectional else 1)
        states = self.given_states(hx, (num, x.shape[1], self.hidden_size), x)
        if not is_batched and hx is not None:
            states = [s.unsqueeze(1) for s in states]
        y, last = self._run_layers(x, states)
        if not is_batched:
            y, last = y.squeeze(1), [s.squeeze(1) for s in last]
        elif self.batch_first:
            y = y.transpose(0, 1)
        result: tuple[Tensor, Any] = self.result((y, tuple(last) if len(last) > 1 else last[0]))
        return result

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, num_layers={self.num_layers}, bidirectional={self.bidirectional}"

    def _run_layers(self, x: Tensor, states: list[Any]) -> tuple[Tensor, list[Tensor]]:
        """Results `[T, N, D * H]` and each state `[layers * D, N, H]` of inputs `[T, N, I]`."""
        last: list[list[Tensor]] = [[] for _ in states]
        index = 0
        for layer in range(self.num_layers):
            parts = []
            if layer and self.training and self.dropout > 0:
                x = F.dropout(x, self.dropout)
            for suffix in ("", "_reverse") if self.bidirectional else ("",):
                y, after = self._run_loop(f"l{layer}{suffix}", x, [s[index] for s in states])
                parts.append(y)
                for kept, state in zip(last, after, strict=False):
                    kept.append(state.unsqueeze(0))
                index += 1
            x = parts[0] if len(parts) == 1 else self.get_submodule(f"cat_l{layer}")(parts, dim=-1)
        names = ("h_n", "c_n")
        return x, [s[0] if len(s) == 1 else self.get_submodule(n)(s) for n, s in zip(names, last, strict=False)]

    def _run_loop(self, name: str, x: Tensor, states: list[Any]) -> tuple[Tensor, tuple[Any, ...]]:
        loop: Any = self._modules[name]
        is_reverse = name.endswith("_reverse")
        y, after = loop(x.flip(0) if is_reverse else x, self.loop_states(states))
        return (y.flip(0) if is_reverse else y), after


class IntegerRecurrentLayers(_LayersForm):
    """Recurrent layers on codes."""


class FakeQuantRecurrentLayers(_LayersForm, FakeQuantComposite):
    """Recurrent layers with every inner value fake-quantized."""

    integer_class = IntegerRecurrentLayers


class _CellForm(_Recurrent):
    """`nn.LSTMCell`, `nn.GRUCell`, `nn.RNNCell`: one step of the loop `step`."""

    stands_for = nn.RNNCellBase
    step: Any

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """As the torch module: the states `[N, H]` after one step."""
        is_batched = input.dim() == 2
        x = input if is_batched else input.unsqueeze(0)
        states = self.given_states(hx, (x.shape[0], self.hidden_size), x)
        if not is_batched and hx is not None:
            states = [s.unsqueeze(0) for s in states]
        _, after = self.step(x.unsqueeze(0), self.loop_states(states))
        after = after if is_batched else tuple(s.squeeze(0) for s in after)
        return self.result(after if self.kind_name == "lstm" else after[0])

    def extra_repr(self) -> str:
        return str(self.hidden_size)


class IntegerRecurrentCell(_CellForm):
    """A recurrent cell on codes."""


class FakeQuantRecurrentCell(_CellForm, FakeQuantComposite):
    """A recurrent cell with every inner value fake-quantized."""

    integer_class = IntegerRecurrentCell
    output = "step.out"


def _kind_name(module: Any) -> str:
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return "lstm"
    return "gru" if isinstance(module, (nn.GRU, nn.GRUCell)) else str(module.nonlinearity)


def _take_facts(new: _Recurrent, module: Any, qconfig: QConfig) -> None:
    new.kind_name, new.label, new.stands_for = _kind_name(module), type(module).__name__, type(module)
    new.hidden_size, new.is_float_output = module.hidden_size, qconfig.activation is None


def _layers(module: nn.RNNBase, qconfig: QConfig) -> nn.Module:
    new = FakeQuantRecurrentLayers()
    _take_facts(new, module, qconfig)
    new.num_layers, new.bidirectional = module.num_layers, module.bidirectional
    new.batch_first, new.dropout = module.batch_first, module.dropout
    narrow, suffixes = narrow_qconfig(qconfig), ("", "_reverse") if module.bidirectional else ("",)
    for layer in range(module.num_layers):
        for suffix in suffixes:
            new.add_module(f"l{layer}{suffix}", _loop_of(module, f"_l{layer}{suffix}", new.kind_name, qconfig))
        if module.bidirectional:
            new.add_function(f"cat_l{layer}", "cat", narrow, module)
    if module.num_layers * len(suffixes) > 1:
        new.add_function("h_n", "cat", narrow, module)
        if new.kind_name == "lstm":
            new.add_function("c_n", "cat", wide_qconfig(qconfig), module)
    last = module.num_layers - 1
    new.output = f"cat_l{last}" if module.bidirectional else f"l{last}.out"
    new.train(module.training)
    return new


def _cell(module: nn.RNNCellBase, qconfig: QConfig) -> nn.Module:
    new = FakeQuantRecurrentCell()
    _take_facts(new, module, qconfig)
    new.add_module("step", _loop_of(module, "", new.kind_name, qconfig))
    new.train(module.training)
    return new


def _loop_of(module: Any, suffix: str, kind_name: str, qconfig: QConfig) -> StepLoop:
    weights = getattr(module, f"weight_ih{suffix}"), getattr(module, f"weight_hh{suffix}")
    biases = (getattr(module, f"bias_ih{suffix}"), getattr(module, f"bias_hh{suffix}")) if module.bias else None
    return make_loop(kind_name, weights, biases, qconfig, module)


def _refusal(module: nn.RNNBase) -> str:
    """Why a recurrent layer stays in float, or ""."""
    if module.proj_size > 0:
        return f"proj_size={module.proj_size} has no quantized form: runs in float"
    return ""


LSTM = register(
    OpSpec("lstm", Family.COMPOSITE, modules=(nn.LSTM,), fake_quant=_layers, refusal=_refusal,
           note="int16 gates and cell (int8 where the march has no int16), tables, int8 states; layers, both "
                "directions; `proj_size` stays float, a PackedSequence is refused")
)  # fmt: skip
GRU = register(
    OpSpec("gru", Family.COMPOSITE, modules=(nn.GRU,), fake_quant=_layers, refusal=_refusal,
           note="as lstm; the state between steps keeps int16")
)  # fmt: skip
RNN = register(
    OpSpec("rnn", Family.COMPOSITE, modules=(nn.RNN,), fake_quant=_layers, refusal=_refusal,
           note="as lstm, with tanh or relu")
)  # fmt: skip
LSTM_CELL = register(
    OpSpec("lstm_cell", Family.COMPOSITE, modules=(nn.LSTMCell,), fake_quant=_cell, note="one step of lstm")
)
GRU_CELL = register(
    OpSpec("gru_cell", Family.COMPOSITE, modules=(nn.GRUCell,), fake_quant=_cell, note="one step of gru")
)
RNN_CELL = register(
    OpSpec("rnn_cell", Family.COMPOSITE, modules=(nn.RNNCell,), fake_quant=_cell, note="one step of rnn")
)
