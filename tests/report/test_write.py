from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from profiler.errors import ReportError
from profiler.records import ReportData
from profiler.report import write
from profiler.report.charts import histogram_name
from profiler.report.write import WrittenFiles, write_report
from tests.report.sample_data import rich_report

MAIN_FILES = (
    "similarity.txt ordered_op_error_similarity.txt similarity.html model0_statistic.txt model0_statistic.html "
    "model1_statistic.txt model1_statistic.html weight_comparison.txt qconfig_info.txt module_called_count.txt "
    "unfused_operations.txt model0.txt model1.txt similarity.csv weight_comparison.csv qconfig_info.csv"
).split()
GENERAL_FILES = (
    "findings.txt findings.csv report.json profiler.html profiler.zip environment.txt journal.txt manifest.json".split()
)
Contents = dict[str, bytes]


def contents(folder: Path) -> Contents:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the making of the files, for tests that are about where files go."""

    def use(**files: str) -> None:
        made = {name.replace("__", "/") + ".txt": content.encode() for name, content in files.items()}
        monkeypatch.setattr(write, "report_files", lambda _: made)

    return use


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WrittenFiles]:
    folder = tmp_path_factory.mktemp("write") / "deep" / "out"
    return folder, write_report(rich_report(), folder)


def test_write_report_writes_every_named_file(out: tuple[Path, WrittenFiles]) -> None:
    folder, written = out
    names = set(contents(folder))

    assert names >= {*MAIN_FILES, *GENERAL_FILES, *(f"QvsQ/{name}" for name in MAIN_FILES)}
    assert names == {str(path.relative_to(folder)) for path in written.files}
    assert names == set(json.loads((folder / "manifest.json").read_text())["files"])
    assert (written.html_path, written.zip_path) == (folder / "profiler.html", folder / "profiler.zip")


def test_write_report_zip_holds_all_other_files_with_their_bytes(out: tuple[Path, WrittenFiles]) -> None:
    folder, written = out
    assert written.zip_path is not None
    on_disk = contents(folder)
    del on_disk["profiler.zip"]

    with zipfile.ZipFile(written.zip_path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == on_disk
        assert {info.date_time for info in archive.infolist()} == {(2026, 3, 1, 12, 0, 0)}


def test_write_report_twice_gives_same_bytes(out: tuple[Path, WrittenFiles], tmp_path: Path) -> None:
    write_report(rich_report(), tmp_path)

    assert contents(tmp_path) == contents(out[0])


def test_write_report_csv_rows_equal_layers(out: tuple[Path, WrittenFiles], report: ReportData) -> None:
    with (out[0] / "similarity.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))

    assert [row["name"] for row in rows] == [layer.name for layer in report.comparisons[0].layers]
    assert rows[8]["reason"] == "the module did not run in either forward"


def test_write_report_pictures_are_png_with_legal_names(out: tuple[Path, WrittenFiles]) -> None:
    pictures = sorted((out[0] / "charts").iterdir())

    assert {"error_along_network.png", "model0_statistic.png", "model1_statistic.png"} <= {
        item.name for item in pictures
    }
    assert "op_0003_script_b_x.png" in {item.name for item in pictures}
    assert all(item.read_bytes().startswith(b"\x89PNG") for item in pictures)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b\\c:d", "", "…", "x" * 500])
def test_histogram_name_any_op_name_is_a_plain_file_name(report: ReportData, name: str) -> None:
    layer = replace(report.comparisons[0].layers[0], name=name)

    assert Path(histogram_name(layer)).name == histogram_name(layer)
    assert len(histogram_name(layer)) < 80


def test_write_report_without_zip_has_none(tmp_path: Path, quick: Callable[..., None]) -> None:
    quick(a="1")

    assert write_report(rich_report(), tmp_path, make_zip=False).zip_path is None
    assert sorted(contents(tmp_path)) == ["a.txt", "manifest.json"]


def test_write_report_second_run_replaces_old_files_and_keeps_foreign(
    tmp_path: Path, quick: Callable[..., None]
) -> None:
    quick(a="old", gone="old", QvsQ__b="old")
    write_report(rich_report(), tmp_path, make_zip=False)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "QvsQ" / "notes.txt").write_text("mine too")
    quick(a="new")

    write_report(rich_report(), tmp_path, make_zip=False)

    found = contents(tmp_path)
    assert found.pop("manifest.json")
    assert found == {"a.txt": b"new", "notes.txt": b"mine", "QvsQ/notes.txt": b"mine too"}


def test_write_report_second_run_removes_folders_left_empty(tmp_path: Path, quick: Callable[..., None]) -> None:
    quick(QvsQ__charts__b="old")
    write_report(rich_report(), tmp_path, make_zip=False)
    quick(a="new")
    write_report(rich_report(), tmp_path, make_zip=False)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "manifest.json"]


def test_write_report_foreign_file_in_the_way_is_kept(tmp_path: Path, quick: Callable[..., None]) -> None:
    (tmp_path / "a.txt").write_text("mine")
    (tmp_path / "QvsQ").write_text("a file where a folder has to be")
    quick(a="new", QvsQ__b="new")

    write_report(rich_report(), tmp_path, make_zip=False)

    found = contents(tmp_path)
    assert found["a.txt"] == found["QvsQ/b.txt"] == b"new"
    assert found["a.txt.kept"] == b"mine"
    assert found["QvsQ.kept"] == b"a file where a folder has to be"


def test_write_report_link_out_of_the_folder_is_not_followed(tmp_path: Path, quick: Callable[..., None]) -> None:
    outside, out_dir = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out_dir.mkdir()
    (out_dir / "QvsQ").symlink_to(outside)
    quick(QvsQ__b="new")

    write_report(rich_report(), out_dir, make_zip=False)

    assert list(outside.iterdir()) == []
    assert (out_dir / "QvsQ" / "b.txt").read_text() == "new"
    assert (out_dir / "QvsQ.kept").is_symlink()


@pytest.mark.parametrize(
    "manifest", ['{"files": ["../victim"]}', '{"files": ["/tmp/victim"]}', "{", '{"files": 3}', "[]"]
)
def test_write_report_damaged_manifest_deletes_nothing_outside(
    tmp_path: Path, quick: Callable[..., None], manifest: str
) -> None:
    (tmp_path / "victim").write_text("mine")
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    (out_dir / "manifest.json").write_text(manifest)
    quick(a="new")

    write_report(rich_report(), out_dir, make_zip=False)

    assert (tmp_path / "victim").read_text() == "mine"
    assert (out_dir / "a.txt").read_text() == "new"


@pytest.mark.parametrize("failing_move", range(1, 9))
def test_write_report_failure_half_way_leaves_all_as_it_was(
    tmp_path: Path, quick: Callable[..., None], monkeypatch: pytest.MonkeyPatch, failing_move: int
) -> None:
    quick(a="old", b="old", QvsQ__c="old")
    write_report(rich_report(), tmp_path, make_zip=False)
    (tmp_path / "d.txt").write_text("mine")
    before = contents(tmp_path)
    quick(a="new", b="new", d="new", e__f="new")
    moves = iter(range(1, 100))
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if next(moves) == failing_move:
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ReportError, match=r"cannot write the report here: Permission denied.*nothing was changed"):
        write_report(rich_report(), tmp_path, make_zip=False)

    assert contents(tmp_path) == before
    assert not (tmp_path / "e").exists()


def test_write_report_interrupted_while_staging_leaves_no_folder(
    tmp_path: Path, quick: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    quick(a="new")
    monkeypatch.setattr(write, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(rich_report(), tmp_path / "deep" / "out")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "out", "out/deeper"])
def test_write_report_path_is_or_is_below_a_file_says_what_to_do(
    tmp_path: Path, quick: Callable[..., None], below: str
) -> None:
    quick(a="new")
    (tmp_path / "file").write_text("mine")

    with pytest.raises(ReportError, match=r"file.*cannot write the report here.*give out_dir a folder"):
        write_report(rich_report(), tmp_path / "file" / below)

    assert (tmp_path / "file").read_text() == "mine"


def test_write_report_empty_report_is_complete(tmp_path: Path) -> None:
    written = write_report(ReportData("empty", "Nothing was compared.", "no time"), tmp_path)

    assert "Nothing was compared." in written.html_path.read_text(encoding="utf-8")
    assert written.zip_path is not None
    assert zipfile.ZipFile(written.zip_path).testzip() is None
