from __future__ import annotations

import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest

from profiler.errors import ReportError
from profiler.profile_report import ProfileReport
from profiler.records import Coverage, ReportData
from tests.report.sample_data import HOSTILE, rich_report

FRAMES = (
    "similarity ordered_op_error layers statistic0 statistic1 weights called unfused qconfig weight_qconfig "
    "qconfig_messages findings metrics effects"
).split()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    return ProfileReport.write(rich_report(), tmp_path_factory.mktemp("out") / "report")


def test_write_gives_paths_that_exist(written: ProfileReport) -> None:
    assert written.out_dir is not None
    assert written.html_path == written.out_dir / "profiler.html"
    assert written.zip_path == written.out_dir / "profiler.zip"


def test_load_folder_and_file_give_the_same_report(written: ProfileReport) -> None:
    assert written.out_dir is not None
    from_folder = ProfileReport.load(written.out_dir)
    from_file = ProfileReport.load(written.out_dir / "report.json")

    assert from_folder.findings == from_file.findings == written.findings
    assert from_folder.html_path == from_file.html_path == written.html_path
    assert from_folder.coverage == Coverage(
        13, 8, {"uncalled": 1, "unmatched": 1, "shape mismatch": 1, "unsupported type": 1}
    )


def test_load_folder_without_report_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no such file"):
        ProfileReport.load(tmp_path)


@pytest.mark.parametrize("name", FRAMES)
def test_frame_known_name_gives_rows(written: ProfileReport, name: str) -> None:
    assert len(written.frame(name)) > 0


def test_frame_similarity_is_numeric_with_one_row_per_layer(written: ProfileReport) -> None:
    table = written.frame("similarity")

    assert len(table) == len(written.layers)
    assert table["similarity"].dtype == "float64"
    assert table["similarity"].isna().sum() == 6  # five rows that were not compared and one NaN


def test_frame_mode_picks_the_comparison(written: ProfileReport) -> None:
    assert len(written.frame("similarity", mode="QvsQ")) == 4
    assert len(written.frame("similarity", mode="FvsQ")) == 13


def test_frame_unknown_name_lists_the_legal_ones(written: ProfileReport) -> None:
    with pytest.raises(ReportError, match=r"'statistics'.*statistic0, statistic1"):
        written.frame("statistics")


def test_frame_unknown_mode_lists_what_is_held(written: ProfileReport) -> None:
    with pytest.raises(ReportError, match=r"'CvsQ'.*FvsQ, QvsQ"):
        written.frame("weights", "CvsQ")


def test_open_shows_page_and_prints_nothing(
    written: ProfileReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", shown.append)

    path = written.open()

    assert shown == [path.resolve().as_uri()]
    assert capsys.readouterr().out == ""


def test_open_report_that_was_not_written_says_what_to_do() -> None:
    with pytest.raises(ReportError, match="write it with ProfileReport"):
        ProfileReport(rich_report()).open()


def test_repr_names_verdict_findings_and_page(written: ProfileReport) -> None:
    text = repr(written)

    assert written.verdict in text
    assert f"E RG2 {HOSTILE}" in text
    assert str(written.html_path) in text


def test_repr_html_escapes_names(written: ProfileReport) -> None:
    assert "<b>x" not in written._repr_html_()
    assert "&lt;/script&gt;" in written._repr_html_()


def test_report_without_comparisons_is_usable() -> None:
    report = ProfileReport(ReportData("t", "nothing was compared", "2026-01-01"))

    assert report.layers == ()
    assert report.coverage == Coverage()
    assert report.html_path is None
    assert "nothing was compared" in repr(report)


@pytest.mark.parametrize("module", ["report.render_html", "report.write", "store", "profile_report"])
def test_import_in_fresh_interpreter_leaves_torch_out(module: str) -> None:
    code = f"import sys, profiler.{module}; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_import_profile_report_is_light() -> None:
    code = (
        "import sys, profiler.profile_report as p; sys.exit(bool({'pandas', 'bokeh', 'matplotlib'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
