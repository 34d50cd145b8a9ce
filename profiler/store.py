"""Saves a report as report.json and loads it again: strict JSON, a schema version, same input same bytes."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from cattrs import Converter, transform_error
from cattrs.errors import BaseValidationError

from profiler.errors import ReportError
from profiler.records import SCHEMA_VERSION, ReportData

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_Scalar = float | int | str


def save_report(data: ReportData, path: Path | str) -> Path:
    """Writes `data` to `path`, as a whole or not at all.

    Args:
        data: the report.
        path: the file to write; its folder has to exist.

    Returns:
        The path that was written.

    Raises:
        ReportError: the file cannot be written.
    """
    path = Path(path)
    try:
        _write_atomically(path, dump_report(data))
    except OSError as error:
        raise ReportError(
            f"{path}: cannot write the report: {error.strerror or error}; "
            "expected a file name in an existing folder that you may write to"
        ) from error
    return path


def load_report(path: Path | str) -> ReportData:
    """Reads what `save_report` wrote.

    Args:
        path: a report.json.

    Returns:
        The report, equal to the one that was saved (NaN included).

    Raises:
        ReportError: no such file, no JSON, another schema version, or fields that do not fit.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ReportError(f"{path}: no such file; expected the report.json that a run of the profiler wrote") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot read the report: {error}; expected a report.json in UTF-8") from error
    return _structure(_parse(text, path), path)


def dump_report(data: ReportData) -> str:
    """Gives the JSON text of a report: sorted keys, no NaN or Infinity literals (they become strings)."""
    plain = _CONVERTER.unstructure(data, unstructure_as=ReportData)
    return json.dumps(plain, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(
            f"{path}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "the file is cut off or is no report.json: write the report again"
        ) from error
    if not isinstance(plain, dict) or "schema_version" not in plain:
        raise ReportError(f"{path}: JSON without a schema_version; expected the report.json of the profiler")
    return plain


def _structure(plain: dict[str, Any], path: Path) -> ReportData:
    version = plain["schema_version"]
    if version != SCHEMA_VERSION:
        raise ReportError(
            f"{path}: schema version {version!r}, but this profiler reads version {SCHEMA_VERSION}; "
            "render it with the profiler that wrote it, or run the profiler again"
        )
    try:
        return _CONVERTER.structure(plain, ReportData)
    except (BaseValidationError, TypeError, ValueError, KeyError) as error:
        details = transform_error(error) if isinstance(error, BaseValidationError) else [str(error)]
        raise ReportError(
            f"{path}: {len(details)} field(s) do not fit schema version {SCHEMA_VERSION}, the first: {details[0]}; "
            "the file was edited or is damaged: write the report again"
        ) from error


def _write_atomically(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _plain_float(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _read_float(value: Any, _: Any) -> float:
    if isinstance(value, str):
        if value not in _NON_FINITE:
            raise ValueError(f"expected a number, NaN, Infinity or -Infinity, got {value!r}")
        return _NON_FINITE[value]
    return float(value)


def _plain_scalar(value: _Scalar) -> Any:
    """A union of number and text: a non-finite number is tagged, so that it cannot be taken for the text "NaN"."""
    if isinstance(value, float):
        plain = _plain_float(value)
        return {"float": plain} if isinstance(plain, str) else plain
    return str(value) if isinstance(value, str) else int(value)


def _read_scalar(value: Any, _: Any) -> _Scalar:
    if isinstance(value, dict):
        return _NON_FINITE[value["float"]]
    if isinstance(value, float | int | str):
        return value
    raise ValueError(f"expected a number or a text, got {value!r}")


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(float, _plain_float)
    converter.register_unstructure_hook(int, int)
    converter.register_unstructure_hook(bool, bool)
    converter.register_structure_hook(float, _read_float)
    converter.register_unstructure_hook(_Scalar, _plain_scalar)
    converter.register_structure_hook(_Scalar, _read_scalar)
    return converter


_CONVERTER = _converter()
