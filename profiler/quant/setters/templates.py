"""Templates that say dtypes: by the names of ops, for convolutions, for matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from profiler.errors import ConfigError
from profiler.quant.fx.qconfigs import nothing_matched
from profiler.quant.setters.ports import (
    FLOAT,
    INPUT,
    OUTPUT,
    WEIGHT,
    PortRequests,
    Request,
    parse_dtype,
    parse_requests,
)
from profiler.quant.setters.session import Session
from profiler.quant.setters.settable import SettableOp, prefixes_of
from profiler.quant.swap import QuantEffect

_CONVOLUTIONS = ("conv", "conv1d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
NO_EFFECT = "no effect"


class Template(Protocol):
    """Changes ports of ops, and says for each of its entries what came of it."""

    def apply(self, session: Session) -> list[QuantEffect]:
        """Change the ports of the session's ops."""
        ...


class ModuleNameTemplate:
    """Dtypes and thresholds of ops by name.

    The most specific entry that names an op governs it, port by port. An input is what another op gives: asking for its
    dtype sets the output of that op, or the automatic stub where the input is float; "" means these stubs too. A fused
    group is one op; each of its names is good.

    Args:
        mapping: path or op name of an op, or of a module that holds ops ("": the model), to what its ops are to have:
            a dtype (of the output), `{"dtype": d, "threshold": t}`, or `{"output": d, "weight": d, "input": d}`. In the
            second form d and t may be given per port; t alone is the output's. Input dtypes may be a list, one for each
            operand (None: as it is). "torch.float32" leaves an output unquantized. The scale of a threshold t is
            `t / (-quant_min)`: t / 128 for int8.
        freeze: later templates and automatic changes leave these ports as they are.

    Raises:
        ConfigError: a name is no string, a dtype or threshold cannot be used.
    """

    def __init__(self, mapping: Mapping[str, Any], freeze: bool = False) -> None:
        given: Any = mapping
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise ConfigError('ModuleNameTemplate: expected a mapping from names of ops to dtypes, {"conv1": "qint16"}')
        self.freeze = freeze
        self._by_specificity = sorted(given, key=_specificity)
        self.requests = {n: parse_requests(value, f"ModuleNameTemplate {n!r}") for n, value in mapping.items()}

    def apply(self, session: Session) -> list[QuantEffect]:
        """Change the ports of the ops that the mapping names."""
        governed: dict[str, list[str]] = {name: [] for name in self.requests}
        matched: dict[str, list[SettableOp]] = {name: [] for name in self.requests}
        for port in (OUTPUT, WEIGHT, INPUT):  # outputs first: an input is asked for at the op that makes it
            if port == INPUT and OUTPUT in self.requests.get("", ()):
                self._apply_to_stubs(session, self.requests[""][OUTPUT][0])
            for op in session.network.ops:
                self._apply_to(session, op, port, governed, matched)
        if self.freeze:
            for touched in session.touched:
                touched.frozen_by = session.template
        return [self._effect(session, name, governed[name], matched[name]) for name in self.requests]

    def _apply_to_stubs(self, session: Session, request: Request) -> None:
        """All ops means the automatic stubs too; what is said of an op's input comes after it."""
        for op in session.network.ops:
            if request.dtype not in (None, FLOAT) and session.network.stub_operands(op):
                session.set_port(op, INPUT, Request(request.dtype), "named by '': an automatic stub makes its input")

    def _apply_to(
        self, session: Session, op: SettableOp, port: str, governed: dict[str, list[str]], matched: dict[str, Any]
    ) -> None:
        wanted: list[Request] = []
        chosen = ""
        for name in self._by_specificity:
            if name not in op.prefixes:
                continue
            matched[name] += [op] if op not in matched[name] else []
            given = self.requests[name].get(port)
            if given is None or (port not in op.ports and name not in op.names):  # a prefix takes what there is
                continue
            wanted, chosen = _over(given, wanted), name
        if wanted and self._set(session, op, port, wanted, chosen) and op.name not in governed[chosen]:
            governed[chosen].append(op.name)

    def _set(self, session: Session, op: SettableOp, port: str, wanted: list[Request], name: str) -> bool:
        is_named, reason = name in op.names, f"named by {name!r}"
        if port != INPUT:
            return session.set_port(op, port, wanted[0], reason, is_named=is_named)
        if len(wanted) == 1 and session.network.graph is not None:
            wanted = wanted * max(1, len(session.network.operands(op)))
        return all([session.set_input(op, i, w, reason) for i, w in enumerate(wanted) if w != Request()])

    def _effect(self, session: Session, name: str, governed: list[str], matched: list[SettableOp]) -> QuantEffect:
        wanted = _summary(self.requests[name])
        if governed:
            applied = f"to {len(governed)} ops: {', '.join(governed)}"
            return QuantEffect(f"{session.template} {name!r}", wanted, "applied", applied)
        if matched:
            return QuantEffect(name, wanted, NO_EFFECT, _why_nothing(session, matched, self.requests[name]))
        if any(name in prefixes_of(path) for paths in session.network.paths.values() for path in paths):
            return QuantEffect(name, wanted, NO_EFFECT, "changed nothing: the forward calls no op of it")
        return nothing_matched(name, wanted, session.network.known_names)


class ConvDtypeTemplate:
    """Dtypes of the input and the weight of every convolution, transposed ones too.

    Args:
        input_dtype: "qint8" or "qint16"; None: as it is.
        weight_dtype: the same for the weight.

    Raises:
        ConfigError: a dtype cannot be used.
    """

    def __init__(self, input_dtype: str | None = None, weight_dtype: str | None = None) -> None:
        pairs = {INPUT: input_dtype, WEIGHT: weight_dtype}
        self.dtypes = {port: parse_dtype(d, f"ConvDtypeTemplate, {port}") for port, d in pairs.items() if d is not None}

    def apply(self, session: Session) -> list[QuantEffect]:
        """Change the ports of all convolutions."""
        ops = [op for op in session.network.ops if op.spec is not None and op.spec.name in _CONVOLUTIONS and op.ports]
        done = []
        for op in ops:
            results = []
            if WEIGHT in self.dtypes:
                request = Request(self.dtypes[WEIGHT])
                results.append(session.set_port(op, WEIGHT, request, "weight of a convolution"))
            if INPUT in self.dtypes:
                results.append(session.set_input(op, 0, Request(self.dtypes[INPUT]), f"input of {op.name}"))
            done += [op.name] if any(results) else []
        return [effect_of_ops(session, self.dtypes, ops, done, "convolution")]


class MatmulDtypeTemplate:
    """Dtypes of the operands of every product of two activations: `@`, torch.matmul, bmm, mm.

    Args:
        input_dtypes: a dtype for both operands, or a pair (None: as it is).

    Raises:
        ConfigError: a dtype cannot be used, or there are not two.
    """

    def __init__(self, input_dtypes: str | Sequence[str | None]) -> None:
        given: Any = (input_dtypes, input_dtypes) if isinstance(input_dtypes, str) else input_dtypes
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise ConfigError(f"MatmulDtypeTemplate: input_dtypes is {input_dtypes!r}; expected a dtype, or two")
        self.dtypes = [d if d is None else parse_dtype(d, "MatmulDtypeTemplate") for d in given]

    def apply(self, session: Session) -> list[QuantEffect]:
        """Change the operands of all matrix products."""
        ops = [op for op in session.network.ops if op.spec is not None and op.spec.name == "matmul" and op.ports]
        wanted = {i: dtype for i, dtype in enumerate(self.dtypes) if dtype is not None}
        done = [
            op.name
            for op in ops
            if any([session.set_input(op, i, Request(d), f"operand {i} of {op.name}") for i, d in wanted.items()])
        ]
        labels = {f"operand {i}": dtype for i, dtype in wanted.items()}
        return [effect_of_ops(session, labels, ops, done, "matmul")]


def effect_of_ops(
    session: Session, dtypes: Mapping[str, str], ops: list[SettableOp], done: list[str], kind: str
) -> QuantEffect:
    """What came of a template for one kind of ops."""
    wanted = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
    if done:
        return QuantEffect(session.template, wanted, "applied", f"to {len(done)} ops: {', '.join(done)}")
    why = f"the quantized part has no {kind}" if not ops else _reasons(session, {op.name for op in ops})
    return QuantEffect(session.template, wanted, NO_EFFECT, f"changed nothing: {why}")


def _specificity(name: str) -> int:
    return len(name.split(".")) if name else 0


def _over(given: list[Request], below: list[Request]) -> list[Request]:
    if len(below) == 1:
        below = below * len(given)
    if len(given) == 1:
        given = given * max(1, len(below))
    return [g.over(below[i]) if i < len(below) else g for i, g in enumerate(given)]


def _summary(requests: PortRequests) -> str:
    if list(requests) == [OUTPUT]:
        return str(requests[OUTPUT][0])
    return ", ".join(f"{port} {' and '.join(map(str, given))}" for port, given in requests.items())


def _why_nothing(session: Session, matched: list[SettableOp], requests: PortRequests) -> str:
    told = _reasons(session, {op.name for op in matched})
    if not told:
        why = {f"{op.name}: {op.why_not(port)}" for op in matched for port in requests if port not in op.ports}
        told = "; ".join(sorted(why)) or "more specific entries govern its ops"
    return f"changed nothing: {told}"


def _reasons(session: Session, names: set[str]) -> str:
    """Why ops were not changed; where the ops that make their inputs were not, those are told too."""
    own = [r for r in session.refusals if r.template == session.template]
    theirs = [r for r in own if r.op in names] or own
    return "; ".join(dict.fromkeys(f"{r.op}: {r.reason}" for r in theirs))
