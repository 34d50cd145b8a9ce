"""Changes that follow the templates: dtypes that the march lacks, and outputs that stay unquantized."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from profiler.quant.affine import qint8, qint16
from profiler.quant.fx.fallback import fused_add_reason
from profiler.quant.march import March
from profiler.quant.march_table import MARCH_TABLES, OpRule
from profiler.quant.ops.registry import Family, OpSpec
from profiler.quant.setters.flow import Network
from profiler.quant.setters.ports import FLOAT, INPUT, OUTPUT, WEIGHT, Request
from profiler.quant.setters.session import Session
from profiler.quant.setters.settable import SettableOp
from profiler.quant.swap import QuantEffect

_LOGGER = logging.getLogger(__name__)
_INT8 = frozenset({qint8})


@dataclass(frozen=True)
class _Limit:
    """Dtypes that a tensor may have, and why the others are not legal."""

    legal: frozenset[str]
    reason: str


def keep_outputs_unquantized(session: Session) -> None:
    """Leave the outputs of weighted ops that only feed DeQuantStubs, float ops or the model's end unquantized."""
    session.begin("high_precision_output")
    for op in session.network.ops:
        output = op.ports.get(OUTPUT)
        if output is None or op.family is not Family.GEMM or not session.network.feeds_only_outputs(op):
            continue
        if output.is_named and output.dtype != FLOAT:
            session.refuse(op, OUTPUT, FLOAT, f"a template names this op and asks for {output}")
        elif output.dtype != FLOAT or output.frozen_by:
            session.set_port(op, OUTPUT, Request(FLOAT), "it only feeds outputs of the model")


def fit_to_march(session: Session, march: March, *, is_allowed: bool) -> list[QuantEffect]:
    """Give every port a dtype that the march has for the op and for those that read it.

    Args:
        session: the ports as the templates left them.
        march: the target.
        is_allowed: False changes nothing; what is not deployable is told.

    Returns:
        One effect, and one logged warning, for each port that is not deployable.
    """
    session.begin("enable_optimize")
    effects = []
    for op in session.network.ops:
        for port in (OUTPUT, WEIGHT, INPUT):
            found = op.ports.get(port)
            has_stub = port != INPUT or session.network.stub_operands(op)
            if found is None or found.dtype == FLOAT or not has_stub:
                continue
            broken = [limit for limit in _limits(session.network, op, port, march) if found.dtype not in limit.legal]
            if broken:
                effects += _mend(session, op, port, broken, march, is_allowed=is_allowed)
    return effects


def _mend(
    session: Session, op: SettableOp, port: str, broken: list[_Limit], march: March, *, is_allowed: bool
) -> list[QuantEffect]:
    found = op.ports[port]
    reason = "; ".join(dict.fromkeys(limit.reason for limit in broken))
    legal = frozenset.intersection(*(limit.legal for limit in _limits(session.network, op, port, march)))
    dtype = next((d for d in (qint8, qint16) if d in legal), None)
    if dtype is not None and is_allowed and not found.frozen_by:
        if port == OUTPUT:
            op.fallback = (found.dtype, reason)
        session.set_port(op, port, Request(dtype), reason)
        return []
    why = f"frozen by {found.frozen_by}" if found.frozen_by else "no dtype fits all that read it"
    why = why if is_allowed or found.frozen_by else "enable_optimize is off"
    session.refuse(op, port, dtype or "a legal dtype", f"{why}; {reason}")
    message = f"not deployable on {march.value}: {port} stays {found.dtype} ({why}); {reason}"
    _LOGGER.warning("%s: %s", op.name, message)
    return [QuantEffect(op.name, found.dtype, found.dtype, message)]


def _limits(network: Network, op: SettableOp, port: str, march: March) -> list[_Limit]:
    if port == WEIGHT:
        weights = MARCH_TABLES[march].weights
        return [_Limit(weights, f"{march.value} has no {op.ports[port].dtype} weights; it has {_listed(weights)}")]
    limits = [] if march.has_int16_activations else [_Limit(_INT8, f"QC8: {march.value} has no int16 activations")]
    if port == INPUT:
        readers = [pair for value in network.stub_operands(op) for pair in network.stub_readers(value)]
        return [*limits, *(limit for call, reader in readers for limit in _as_input(reader, call, march))]
    rule = _rule(op.spec, march)
    if rule is not None and op.spec is not None:
        what = f"{op.spec.name} with {op.ports[port].dtype} output"
        limits.append(_Limit(rule.outputs, f"{march.value} has no {what}; it has {_listed(rule.outputs)}"))
    for call, reader in network.readers(op):
        if reader is not op:
            limits += _as_input(reader, call, march)
    return limits


def _as_input(reader: SettableOp, call: fx.Node, march: March) -> Iterator[_Limit]:
    """Limits on what an op reads in one call."""
    rule = _rule(reader.spec, march)
    if rule is not None and reader.spec is not None:
        legal = rule.inputs
        if reader.family is Family.SCALE_KEEPING:
            legal &= rule.outputs
        yield _Limit(legal, f"{march.value}: {reader.name}, a {reader.spec.name}, reads {_listed(legal)} only")
    if reader.has_add and call in reader.calls:
        yield _Limit(_INT8, fused_add_reason(reader.name))


def _rule(spec: OpSpec | None, march: March) -> OpRule | None:
    """The row of an op; None where the march lacks it whatever the dtypes."""
    table = MARCH_TABLES[march]
    return None if spec is None else table.rows.get(spec.name, table.default)


def _listed(dtypes: frozenset[str]) -> str:
    return " or ".join(sorted(d for d in dtypes if d.startswith("q")) or sorted(dtypes))
