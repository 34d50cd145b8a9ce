"""One op that can be given dtypes, and its ports."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx, nn

from profiler.quant.affine import qint8
from profiler.quant.fx.wrapped import is_followed, is_wrapped
from profiler.quant.modules import class_name
from profiler.quant.ops.registry import Family, OpSpec
from profiler.quant.qconfig import QConfig
from profiler.quant.setters.ports import INPUT, OUTPUT, WEIGHT

_WITHOUT_PORTS = {
    Family.SCALE_KEEPING: "it keeps the dtype and scale of its input; name the op that feeds it",
    Family.INDEX: "its result is not quantized",
    Family.STUB: "its result is float",
}


@dataclass
class Port:
    """Dtype and threshold of one port, and who asked for them."""

    dtype: str
    threshold: float | None = None
    frozen_by: str = ""
    is_named: bool = False  # a template names this op itself, no prefix of it

    def __str__(self) -> str:
        return self.dtype if self.threshold is None else f"{self.dtype} with threshold {self.threshold:g}"


@dataclass
class SettableOp:
    """One op as it will be after fusion.

    Attributes:
        name: op name.
        path: path of the module that stays after fusion.
        modules: modules of the fused group, else the op's own.
        names: all names that mean this op: paths and op names of its modules.
        spec: operator, or None where it runs in float.
        base: qconfig that it would have without templates.
        ports: by name; those that it does not have are missing.
        calls: nodes that take its inputs.
        results: nodes whose users read its output.
        has_add: it is a weighted op fused with an add.
        is_outside: all its inputs are float, and it is no op that has them quantized.
        fallback: dtype of the output that a template asked for and why it is not so, or "" and "".
    """

    name: str
    path: str
    modules: list[nn.Module]
    names: set[str]
    spec: OpSpec | None
    base: QConfig | None
    ports: dict[str, Port] = field(default_factory=dict)
    calls: list[fx.Node] = field(default_factory=list)
    results: list[fx.Node] = field(default_factory=list)
    has_add: bool = False
    is_outside: bool = False
    fallback: tuple[str, str] = ("", "")

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """Its names and their prefixes at a dot; "" is one of all."""
        return frozenset({"", *(prefix for name in self.names for prefix in prefixes_of(name))})

    @property
    def family(self) -> Family | None:
        return None if self.spec is None else self.spec.family

    @property
    def runs_in_float(self) -> bool:
        """Whether the op reads and gives float values."""
        is_float_code = self.spec is None and not self.is_followed
        return self.base is None or is_float_code or self.is_outside

    @property
    def is_followed(self) -> bool:
        """Whether it is wrapped code that quantized values may enter."""
        return is_wrapped(self.modules[0]) and is_followed(self.modules[0])

    def why_not(self, port: str) -> str:
        """Why the op lacks a port."""
        if self.base is None:
            return "qconfig is None: it runs in float"
        if self.is_outside:
            return "its inputs are float: it runs in float"
        if not self.ports:
            reason = _WITHOUT_PORTS.get(self.family) if self.family is not None else None
            return reason or "it has no quantized form: it runs in float"
        if port == WEIGHT:
            return "it has no weight of its own dtype"
        return f"it has no {port} that can be set"


def prefixes_of(path: str) -> set[str]:
    """A path and its prefixes at a dot."""
    parts = path.split(".")
    return {".".join(parts[: i + 1]) for i in range(len(parts))}


def ports_of(module: nn.Module, spec: OpSpec | None, base: QConfig) -> dict[str, Port]:
    """The ports of an op as its qconfig has them."""
    family = Family.FUNCTION if spec is None else spec.family
    if family in (Family.SCALE_KEEPING, Family.INDEX) or class_name(module) == "DeQuantStub":
        return {}
    ports = {OUTPUT: Port(base.activation_dtype)}
    has_weight = family is Family.GEMM or (family is Family.COMPOSITE and next(module.parameters(), None) is not None)
    if has_weight and base.weight is not None:
        ports[WEIGHT] = Port(dtype_of(base.weight))
    if family not in (Family.STUB, Family.TABLE):
        ports[INPUT] = Port(dtype_of(base.input or base.activation))
    return ports


def dtype_of(factory: Any) -> str:
    """Dtype that a fake-quant factory makes."""
    return str(getattr(factory, "keywords", {}).get("dtype", qint8))
