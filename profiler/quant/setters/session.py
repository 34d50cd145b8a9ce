"""What templates change at the ports of a model's ops, and the log of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from profiler.quant.setters.flow import Network
from profiler.quant.setters.ports import FLOAT, INPUT, OUTPUT, Request
from profiler.quant.setters.settable import Port, SettableOp
from profiler.quant.stubs import QuantStub


@dataclass(frozen=True)
class Change:
    """One port that was changed, by whom and why."""

    template: str
    op: str
    port: str
    before: str
    after: str
    reason: str

    def __str__(self) -> str:
        return f"{self.template} | {self.op} | {self.port} | {self.before} -> {self.after} | {self.reason}"


@dataclass(frozen=True)
class Refusal:
    """What was asked for and not done, and why."""

    template: str
    op: str
    port: str
    wanted: str
    reason: str

    def __str__(self) -> str:
        return f"{self.template} | {self.op} | {self.port} | {self.wanted} not set | {self.reason}"


@dataclass
class Session:
    """One run of the templates over a model.

    Attributes:
        network: its ops.
        template: label of the template that runs now.
        changes: what was changed, in order.
        refusals: what was not.
        touched: ports that the running template governs.
    """

    network: Network
    template: str = ""
    changes: list[Change] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    touched: list[Port] = field(default_factory=list)

    def begin(self, template: str) -> None:
        """From now on changes are this template's."""
        self.template, self.touched = template, []

    def set_port(self, op: SettableOp, port: str, request: Request, reason: str, *, is_named: bool = False) -> bool:
        """Give one port what is asked for.

        Returns:
            Whether the port now has it; else a refusal says why not.
        """
        found = op.ports.get(port)
        why_not = op.why_not(port) if found is None else self._blocked(op, found, request)
        if found is None or why_not:
            self.refuse(op, port, str(request), why_not)
            return False
        self.touched.append(found)
        found.is_named = found.is_named or is_named
        after = Port(request.dtype or found.dtype, found.threshold if request.threshold is None else request.threshold)
        after.threshold = None if after.dtype == FLOAT else after.threshold
        if (after.dtype, after.threshold) != (found.dtype, found.threshold):
            self.changes.append(Change(self.template, op.name, port, str(found), str(after), reason))
            found.dtype, found.threshold = after.dtype, after.threshold
        return True

    def set_input(self, op: SettableOp, index: int, request: Request, reason: str) -> bool:
        """Give one operand of an op what is asked for: at the ops that make it, or at the automatic stub before it.

        Returns:
            Whether all calls of the op now read it.
        """
        if INPUT not in op.ports:
            self.refuse(op, INPUT, str(request), op.why_not(INPUT))
            return False
        if self.network.graph is None:
            why = "in the eager front end nobody knows which op makes the input; set the output of that op"
            self.refuse(op, INPUT, str(request), why)
            return False
        operands = self.network.operands(op)
        if index >= len(operands):
            self.refuse(op, INPUT, str(request), f"it has {len(operands)} quantized operands, not {index + 1}")
            return False
        return all([self._set_value(op, node, request, reason) for node in dict.fromkeys(operands[index])])

    def refuse(self, op: SettableOp, port: str, wanted: str, reason: str) -> None:
        """Note what was not done."""
        self.refusals.append(Refusal(self.template, op.name, port, wanted, reason))

    def _blocked(self, op: SettableOp, port: Port, request: Request) -> str:
        is_same = request.over(Request(port.dtype, port.threshold)) == Request(port.dtype, port.threshold)
        if port.frozen_by and not is_same:
            return f"frozen by {port.frozen_by}"
        if request.threshold is not None and (request.dtype or port.dtype) == FLOAT:
            return "its output is not quantized: give a dtype beside the threshold"
        scale = getattr(op.modules[0], "scale", None)
        if request.threshold is not None and isinstance(op.modules[0], QuantStub) and scale is not None:
            return f"the model gives this QuantStub its scale, {scale:g}"
        return ""

    def _set_value(self, op: SettableOp, value: fx.Node, request: Request, reason: str) -> bool:
        done = []
        for source in self.network.sources(value):
            maker = self.network.op_of(source)
            if maker is not None and self.network.is_quantized(source):
                done.append(self.set_port(maker, OUTPUT, request, f"{reason}: {maker.name} makes that input"))
            else:
                for _, reader in self.network.stub_readers(value):  # they share one stub: all are told its dtype
                    why = reason if reader is op else f"{reason}: {reader.name} reads the same value"
                    done.append(self.set_port(reader, INPUT, request, why))
        return all(done)
