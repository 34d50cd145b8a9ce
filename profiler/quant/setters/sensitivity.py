"""The template that raises the dtype of the ops that a sensitivity table lists first."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from profiler.errors import ConfigError
from profiler.quant.affine import qint8, qint16
from profiler.quant.fx.qconfigs import nothing_matched
from profiler.quant.setters.ports import OUTPUT, WEIGHT, Request, parse_dtype
from profiler.quant.setters.session import Session
from profiler.quant.setters.settable import SettableOp
from profiler.quant.setters.templates import NO_EFFECT
from profiler.quant.swap import QuantEffect

SENSITIVE_TYPES = ("activation", "weight", "both")
_PORT_OF = {"activation": OUTPUT, "weight": WEIGHT}
_HEADER = ("op_name", "sensitive_type")
_CALL_OR_METHOD = re.compile(r"(\(\d+\)|\[\w+\])+$")


@dataclass(frozen=True)
class SensitiveRow:
    """One row of a table: an op, and whether its activation or its weight was quantized alone."""

    op: str
    sensitive_type: str


class SensitivityTemplate:
    """Raises the most sensitive activations and weights; all else stays as it is.

    With several outputs, use one template for each table; a later one lowers nothing.

    Args:
        sensitive_table: path of a saved table (`output_{name}_{metric}_sensitive_ops.pt`), or its rows, most sensitive
            first: dicts with the keys `op_name` and `sensitive_type`, or sequences that begin with these two.
        topk_or_ratio: number of rows to raise, or a share of the rows in 0..1 (rounded up).
        sensitive_type: which rows count: "activation", "weight" or "both".
        low_precision_dtype: only ports of this dtype are raised.
        high_precision_dtype: what they get.

    Raises:
        ConfigError: the table or an argument cannot be used.
    """

    def __init__(
        self,
        sensitive_table: Any,
        topk_or_ratio: float,
        sensitive_type: Literal["activation", "weight", "both"] = "both",
        low_precision_dtype: str = qint8,
        high_precision_dtype: str = qint16,
    ) -> None:
        if sensitive_type not in SENSITIVE_TYPES:
            raise ConfigError(f"sensitive_type is {sensitive_type!r}; use one of {', '.join(SENSITIVE_TYPES)}")
        self.low = parse_dtype(low_precision_dtype, "SensitivityTemplate, low_precision_dtype")
        self.high = parse_dtype(high_precision_dtype, "SensitivityTemplate, high_precision_dtype")
        rows = read_sensitive_table(sensitive_table)
        rows = [row for row in rows if sensitive_type in ("both", row.sensitive_type)]
        self.rows = rows[: _count(topk_or_ratio, len(rows))]
        self.num_rows = len(rows)

    def apply(self, session: Session) -> list[QuantEffect]:
        """Raise the ports that the first rows name."""
        raised, effects = [], []
        for rank, row in enumerate(self.rows, 1):
            name = _CALL_OR_METHOD.sub("", row.op)
            op = next((op for op in session.network.ops if name in op.names), None)
            if op is None:
                effects.append(nothing_matched(row.op, self.high, session.network.known_names))
            elif self._raise(session, op, row, rank):
                raised.append(f"{op.name} ({row.sensitive_type})")
        if raised:
            reason = f"to {len(raised)} of {self.num_rows} rows: {', '.join(raised)}"
            return [QuantEffect(session.template, self.high, "applied", reason), *effects]
        reason = "changed nothing: " + ("no row names an op that can be raised" if self.rows else "no row was chosen")
        return [QuantEffect(session.template, self.high, NO_EFFECT, reason), *effects]

    def _raise(self, session: Session, op: SettableOp, row: SensitiveRow, rank: int) -> bool:
        port = _PORT_OF[row.sensitive_type]
        found = op.ports.get(port)
        if found is not None and found.dtype not in (self.low, self.high):
            session.refuse(op, port, self.high, f"it is {found.dtype}, only {self.low} is raised")
            return False
        return session.set_port(op, port, Request(self.high), f"rank {rank} of {self.num_rows} in the table")


def read_sensitive_table(table: Any) -> list[SensitiveRow]:
    """Rows of a sensitivity table, in its order; see `SensitivityTemplate`.

    Raises:
        ConfigError: no such file, or no such table.
    """
    if isinstance(table, (str, os.PathLike)):
        path = Path(table)
        if not path.is_file():
            raise ConfigError(f"sensitive_table: there is no file {path}; the sensitivity tool saves it as .pt")
        try:
            table = torch.load(path, weights_only=True)
        except Exception as error:
            raise ConfigError(f"sensitive_table: {path} cannot be read as a saved table ({error})") from error
    if hasattr(table, "to_dict") and not isinstance(table, Mapping):  # a pandas data frame
        table = table.to_dict("records")
    if isinstance(table, (str, Mapping)) or not isinstance(table, Iterable):
        raise ConfigError(f"sensitive_table: got {type(table).__name__}; expected a path, or a list of rows")
    rows = [row for row in table if not _is_header(row)]
    return [_parse_row(row, i) for i, row in enumerate(rows)]


def _is_header(row: Any) -> bool:
    return isinstance(row, (list, tuple)) and tuple(row[:2]) == _HEADER


def _parse_row(row: Any, index: int) -> SensitiveRow:
    if isinstance(row, Mapping):
        name, kind = row.get("op_name"), row.get("sensitive_type")
    else:
        is_row = isinstance(row, Sequence) and not isinstance(row, str) and len(row) >= 2
        name, kind = (row[0], row[1]) if is_row else (None, None)
    if not isinstance(name, str) or kind not in _PORT_OF:
        raise ConfigError(
            f"sensitive_table: row {index} is {row!r}; expected op_name and sensitive_type (activation or weight)"
        )
    return SensitiveRow(name, kind)


def _count(topk_or_ratio: Any, available: int) -> int:
    if isinstance(topk_or_ratio, int) and not isinstance(topk_or_ratio, bool) and topk_or_ratio >= 0:
        return topk_or_ratio
    if isinstance(topk_or_ratio, float) and 0 <= topk_or_ratio <= 1:
        return math.ceil(topk_or_ratio * available - 1e-9)  # 0.07 * 100 is 7, not 7.0000000000000009
    raise ConfigError(f"topk_or_ratio is {topk_or_ratio!r}; expected a number of rows (int) or a share in 0..1 (float)")
