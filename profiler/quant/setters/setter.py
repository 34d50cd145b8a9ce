"""QconfigSetter: a reference qconfig, templates on top, and what the target makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from profiler.errors import ConfigError
from profiler.quant.affine import qinfo
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.march import require_march
from profiler.quant.naming import op_name
from profiler.quant.observers import FixedScaleObserver
from profiler.quant.ops.registry import Family
from profiler.quant.qconfig import QConfig, check_qconfig_value, propagate_qconfig, with_dtype
from profiler.quant.setters.flow import Network
from profiler.quant.setters.optimize import fit_to_march, keep_outputs_unquantized
from profiler.quant.setters.ports import FLOAT, INPUT, OUTPUT, WEIGHT
from profiler.quant.setters.session import Change, Refusal, Session
from profiler.quant.setters.settable import Port, SettableOp, dtype_of
from profiler.quant.setters.templates import Template
from profiler.quant.swap import QuantEffect
from profiler.quant.target import fit_qconfigs_to_target


@dataclass(frozen=True)
class OpSettings:
    """What the ports of one op got.

    Attributes:
        op: op name.
        path: path of its module.
        dtypes: by port; the input is told where an automatic stub makes it: for each operand, None where an op does.
        thresholds: by port.
    """

    op: str
    path: str
    dtypes: dict[str, Any]
    thresholds: dict[str, float]


class QconfigSetter:
    """Sets the qconfig of every op: the reference, changed by the templates in turn, then fitted to the march.

    A `qconfig` attribute in the model stands for the reference in its subtree; None keeps it in float.

    Args:
        reference_qconfig: from `get_qconfig(...)`, or a ready-made one.
        templates: in order; a later one wins where an earlier one is not frozen.
        enable_optimize: dtypes that the march lacks for an op fall back to those that it has. What is frozen stays, and
            a warning says what cannot be deployed then; with False all stays.
        high_precision_output: weighted ops that only feed outputs stay unquantized, unless a template names them.

    Raises:
        ConfigError: the reference is no QConfig with an activation, or a template is none.

    Attributes:
        changes: what was changed in the last prepare, in order.
        refusals: what was asked for and not done.
        settings: what the ports of every quantized op got.
    """

    def __init__(
        self,
        reference_qconfig: QConfig,
        templates: Sequence[Template] = (),
        enable_optimize: bool = True,
        high_precision_output: bool = True,
    ) -> None:
        reference = check_qconfig_value(reference_qconfig, "QconfigSetter: reference_qconfig")
        if reference is None or reference.activation is None:
            raise ConfigError("QconfigSetter: reference_qconfig needs an activation fake quant; use get_qconfig()")
        wrong = [type(t).__name__ for t in templates if isinstance(t, type) or not hasattr(t, "apply")]
        if wrong:
            raise ConfigError(f"QconfigSetter: {wrong[0]} is no template; give instances such as ModuleNameTemplate")
        self.reference, self.templates = reference, tuple(templates)
        self.enable_optimize, self.high_precision_output = enable_optimize, high_precision_output
        self.changes: list[Change] = []
        self.refusals: list[Refusal] = []
        self.settings: list[OpSettings] = []

    def __call__(self, root: nn.Module, graph: fx.Graph | None = None) -> list[QuantEffect]:
        """Set the qconfig attribute of every module.

        Args:
            root: model in which functions are modules, not yet fused.
            graph: its graph of call_module nodes; None in the eager front end, where inputs and outputs of the model
                are not known.

        Returns:
            What came of each entry of each template, and what cannot be deployed.

        Raises:
            ConfigError: no march is set.
        """
        march = require_march()
        if "qconfig" not in root.__dict__:
            root.__dict__["qconfig"] = replace(self.reference, is_final=not self.enable_optimize)
        propagate_qconfig(root)
        session = Session(Network(root, graph))
        effects = []
        for number, template in enumerate(self.templates, 1):
            session.begin(f"{type(template).__name__} {number}")
            effects += template.apply(session)
        if self.high_precision_output:
            keep_outputs_unquantized(session)
        effects += fit_to_march(session, march, is_allowed=self.enable_optimize)
        self._write(session.network.ops)
        fit_qconfigs_to_target(root)
        self.changes, self.refusals = session.changes, session.refusals
        self.settings = [settings_of(session.network, op) for op in session.network.ops if op.ports]
        return effects

    def _write(self, ops: list[SettableOp]) -> None:
        made: dict[Any, QConfig] = {}
        for op in ops:
            if op.base is None or not op.ports:
                continue
            key = (id(op.base), op.family, op.fallback, *((name, *vars(p).values()) for name, p in op.ports.items()))
            qconfig = made.setdefault(key, self._qconfig(op, op.base))
            for module in op.modules:
                module.__dict__["qconfig"] = qconfig

    def _qconfig(self, op: SettableOp, base: QConfig) -> QConfig:
        activation = base.activation or self.reference.activation
        output = op.ports[OUTPUT]
        weight = op.ports.get(WEIGHT)
        if op.family is Family.TABLE:  # the rows are the output
            weight = output
        requested, reason = op.fallback
        return replace(
            base,
            activation=None if output.dtype == FLOAT else _factory(activation, output),
            weight=base.weight if weight is None or base.weight is None else _factory(base.weight, weight),
            input=_factory(base.input or activation, op.ports[INPUT]) if INPUT in op.ports else base.input,
            fallback_from=requested or base.fallback_from,
            fallback_reason=reason or base.fallback_reason,
            is_final=bool(output.frozen_by) or not self.enable_optimize,
        )


def settings_of(network: Network, op: SettableOp) -> OpSettings:
    """What the ports of an op got; before fusion, which changes the graph."""
    dtypes: dict[str, Any] = {port: op.ports[port].dtype for port in (OUTPUT, WEIGHT) if port in op.ports}
    if network.stub_operands(op):
        made = [all(map(network.is_made, nodes)) for nodes in network.operands(op)]
        inputs = [None if is_made else op.ports[INPUT].dtype for is_made in made]
        dtypes[INPUT] = inputs if len(inputs) > 1 else inputs[0]
    thresholds = {p: port.threshold for p, port in op.ports.items() if port.threshold is not None and p in dtypes}
    return OpSettings(op_name(op.path), op.path, dtypes, thresholds)


def _factory(base: Any, port: Port) -> Any:
    """Factory of a port's fake quant: the base's for its dtype, or of the fixed scale that a threshold gives."""
    if port.threshold is None:
        return base if dtype_of(base) == port.dtype else with_dtype(base, port.dtype)
    scale = port.threshold / -qinfo(port.dtype).quant_min
    return FakeQuantize.with_args(observer=FixedScaleObserver, scale=scale, dtype=port.dtype)
