from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from profiler.errors import ReportError
from profiler.records import Evidence, Finding, ReportData
from profiler.store import dump_report, load_report, save_report
from tests.report.sample_data import rich_report


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_save_report_rich_report_loads_equal(tmp_path: Path) -> None:
    data = rich_report()

    loaded = load_report(save_report(data, tmp_path / "report.json"))

    assert dump_report(loaded) == dump_report(data)  # as text, because NaN is not equal to itself
    assert loaded.findings == data.findings
    assert loaded.comparisons[1].qconfig == data.comparisons[1].qconfig


def test_dump_report_nan_and_inf_is_strict_json_with_sorted_keys() -> None:
    text = dump_report(rich_report())

    plain = json.loads(text, parse_constant=_refuse)

    assert text == json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n"
    assert plain["comparisons"][0]["layers"][7]["accumulated"]["sqnr_db"] == "NaN"
    assert plain["comparisons"][0]["layers"][6]["injected"]["sqnr_db"] == "Infinity"


def test_load_report_evidence_of_each_type_keeps_its_type(tmp_path: Path) -> None:
    values = (math.nan, -math.inf, 1, 1.0, "NaN", "1")
    evidence = tuple(Evidence("e", value) for value in values)
    finding = Finding("A1", "t", "E", "op", "advice", "C", evidence)
    data = ReportData("t", "v", "2026-01-01", findings=(finding,))

    loaded = load_report(save_report(data, tmp_path / "report.json")).findings[0].evidence

    assert [type(item.value) for item in loaded] == [type(value) for value in values]
    assert [str(item.value) for item in loaded] == [str(value) for value in values]


def test_save_report_twice_gives_same_bytes(tmp_path: Path) -> None:
    first = save_report(rich_report(), tmp_path / "a.json").read_bytes()

    assert save_report(rich_report(), tmp_path / "b.json").read_bytes() == first


def test_save_report_failure_half_way_keeps_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_report(rich_report(), tmp_path / "report.json")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ReportError, match="No space left"):
        save_report(replace(rich_report(), title="new"), path)

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_report_below_a_file_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(
        ReportError, match=r"file.report\.json: cannot write.*expected a file name in an existing folder"
    ):
        save_report(rich_report(), tmp_path / "file" / "report.json")


def test_load_report_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"none\.json: no such file; expected the report\.json"):
        load_report(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"title": "cut o', r"not JSON \(line 1, column 11"),
        ("[1, 2]", "without a schema_version"),
        ('{"schema_version": 99}', "schema version 99, but this profiler reads version 1"),
        ('{"schema_version": 1, "title": "t", "verdict": "v", "created": "c", "colour": 1}', r"1 field.*\(colour\)"),
        ('{"schema_version": 1, "title": "t"}', r"2 field.*\.verdict"),
    ],
)
def test_load_report_bad_content_says_what_to_do(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)

    with pytest.raises(ReportError, match=message):
        load_report(path)


def test_load_report_wrong_type_inside_names_the_field(tmp_path: Path) -> None:
    plain = json.loads(dump_report(rich_report()))
    plain["comparisons"][0]["layers"][2]["accumulated"]["cosine"] = "high"
    path = tmp_path / "report.json"
    path.write_text(json.dumps(plain))

    with pytest.raises(ReportError, match=r"comparisons\[0\]\.layers\[2\]\.accumulated"):
        load_report(path)


def test_load_report_bytes_that_are_no_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ReportError, match="cannot read the report"):
        load_report(path)
