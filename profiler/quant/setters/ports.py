"""What templates ask for at the ports of an op: dtypes and thresholds of its output, its weight and its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from profiler.errors import ConfigError
from profiler.quant.affine import qint4, qint8, qint16

OUTPUT, WEIGHT, INPUT = PORTS = ("output", "weight", "input")
FLOAT = "torch.float32"
_DTYPES = (qint4, qint8, qint16)


@dataclass(frozen=True)
class Request:
    """What is wanted at one port; None leaves that part as it is. A threshold is the end of the range that is kept."""

    dtype: str | None = None
    threshold: float | None = None

    def over(self, other: Request) -> Request:
        """This request, and what it leaves open from another."""
        return Request(self.dtype or other.dtype, other.threshold if self.threshold is None else self.threshold)

    def __str__(self) -> str:
        dtype = self.dtype or "any dtype"
        return dtype if self.threshold is None else f"{dtype} with threshold {self.threshold:g}"


PortRequests = dict[str, "list[Request]"]
"""Requests by port: one for the output and the weight; for the input one for all operands, or one for each."""


def parse_dtype(value: Any, where: str, *, may_be_float: bool = False) -> str:
    """Name of a dtype.

    Raises:
        ConfigError: it is none that this port can have.
    """
    if value in (FLOAT, torch.float32) and may_be_float:
        return FLOAT
    if isinstance(value, str) and value in _DTYPES:
        return value
    legal = ", ".join(_DTYPES) + (f" or {FLOAT} (no quantization)" if may_be_float else "")
    raise ConfigError(f"{where}: dtype is {value!r}; expected {legal}")


def parse_requests(value: Any, where: str) -> PortRequests:
    """Requests of one entry of a mapping.

    Args:
        value: a dtype (of the output), `{"dtype": d, "threshold": t}`, or `{"output": d, "weight": d, "input": d}`;
            d and t in the second form may be per port too; t alone is the output's.
        where: what the value belongs to, for messages.

    Raises:
        ConfigError: unknown keys, dtypes, or thresholds that are no positive numbers.
    """
    if not isinstance(value, dict):
        return {OUTPUT: _parse_port(OUTPUT, value, None, where)}
    if not value:
        raise ConfigError(f"{where}: nothing is asked for; give a dtype, or {_FORMS}")
    if value.keys() <= {"dtype", "threshold"}:
        dtypes, thresholds = _by_port(value.get("dtype"), where), _by_port(value.get("threshold"), where)
    else:
        dtypes, thresholds = _by_port(value, where), {}
    ports = [port for port in PORTS if port in dtypes or port in thresholds]
    return {port: _parse_port(port, dtypes.get(port), thresholds.get(port), where) for port in ports}


_FORMS = '{"dtype": d, "threshold": t} or {"output": d, "weight": d, "input": d}'


def _by_port(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        return {OUTPUT: value}
    unknown = [key for key in value if key not in PORTS]
    if unknown:
        raise ConfigError(f"{where}: unknown keys {unknown}; expected {_FORMS}")
    return value


def _parse_port(port: str, dtype: Any, threshold: Any, where: str) -> list[Request]:
    if port != INPUT:
        return [_request(port, dtype, threshold, where)]
    dtypes, thresholds = _as_list(dtype), _as_list(threshold)
    count = max(len(dtypes), len(thresholds))
    if {len(dtypes), len(thresholds)} - {1, count}:
        raise ConfigError(f"{where}: {len(dtypes)} input dtypes and {len(thresholds)} thresholds; give one, or as many")
    dtypes, thresholds = dtypes * (count // len(dtypes)), thresholds * (count // len(thresholds))
    return [_request(port, d, t, where) for d, t in zip(dtypes, thresholds, strict=True)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) and value else [value]


def _request(port: str, dtype: Any, threshold: Any, where: str) -> Request:
    where = f"{where}, {port}"
    name = None if dtype is None else parse_dtype(dtype, where, may_be_float=port == OUTPUT)
    if threshold is None:
        return Request(name)
    is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not is_number or not (math.isfinite(threshold) and threshold > 0):
        raise ConfigError(f"{where}: threshold is {threshold!r}; expected a positive number")
    if name == FLOAT:
        raise ConfigError(f"{where}: a threshold needs a quantized dtype, got {FLOAT}")
    return Request(name, float(threshold))
