from __future__ import annotations

from collections.abc import Callable

import pytest

from profiler.records import Comparison, ModelRecord, QConfigCheck, ReportData
from profiler.report import text
from tests.report.sample_data import UNICODE, rich_report

TEXTS: dict[str, Callable[[Comparison], str]] = {
    "similarity.txt": text.similarity_text,
    "ordered_op_error_similarity.txt": text.ordered_similarity_text,
    "model0_statistic.txt": lambda comparison: text.statistic_text(comparison.reference),
    "model1_statistic.txt": lambda comparison: text.statistic_text(comparison.test),
    "weight_comparison.txt": text.weights_text,
    "module_called_count.txt": text.called_text,
    "unfused_operations.txt": text.unfused_text,
    "qconfig_info.txt": text.qconfig_text,
}
Rows = list[list[str]]


def parse_grids(content: str) -> list[Rows]:
    """Reads the grids of a text as a script of a user would: cells between bars, header rows joined."""
    grids: list[Rows] = []
    is_header = False
    previous = ""
    for line in content.splitlines():
        if line.startswith("+"):
            if not previous.startswith(("|", "+")):
                grids.append([])
                is_header = True
            is_header = is_header and not line.startswith("+=")
        elif line.startswith("| "):
            cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            if is_header and grids[-1]:
                grids[-1][0] = [" ".join(pair).strip() for pair in zip(grids[-1][0], cells, strict=True)]
            else:
                grids[-1].append(cells)
        previous = line
    return grids


@pytest.fixture(scope="module")
def main(report: ReportData) -> Comparison:
    return report.comparisons[0]


@pytest.mark.parametrize("name", TEXTS)
def test_text_rich_report_equals_golden(name: str, main: Comparison, check_golden: Callable[[str, str], None]) -> None:
    check_golden(name, TEXTS[name](main))


def test_findings_text_rich_report_equals_golden(report: ReportData, check_golden: Callable[[str, str], None]) -> None:
    check_golden("findings.txt", text.findings_text(report))
    check_golden("environment.txt", text.environment_text(report))
    check_golden("journal.txt", text.journal_text(report))


@pytest.mark.parametrize("name", TEXTS)
def test_text_empty_comparison_is_a_text(name: str) -> None:
    empty = Comparison("FvsQ", ModelRecord("float", ""), ModelRecord("calib", ""), qconfig=QConfigCheck())

    assert TEXTS[name](empty).endswith("\n")


def test_similarity_text_has_the_columns_that_users_know(main: Comparison) -> None:
    rows = parse_grids(text.similarity_text(main))[0]

    assert rows[0] == [
        "Index",
        "Module Name",
        "Module Type",
        "Similarity",
        "qscale",
        "Acc Error (float atol)",
        "Acc Error (N out_qscale)",
        "Op Error with Same Input (N out_qscale)",
    ]
    assert [row[0] for row in rows[1:]] == [str(layer.index) for layer in main.layers]


def test_similarity_text_explains_suffixes(main: Comparison) -> None:
    note = text.similarity_text(main).split("Note:")[1]

    assert all(suffix in note for suffix in ("(i)", "(I)", "(I vs I)", "[add]"))


def test_similarity_text_row_not_compared_shows_reason(main: Comparison) -> None:
    rows = {row[1]: row for row in parse_grids(text.similarity_text(main))[0]}

    assert rows["aux.unused"][3] == "uncalled: the module did not run in either forward"
    assert rows["aux.unused"][5:] == ["", "", ""]


def test_similarity_text_qscale_is_empty_where_there_is_no_single_one(main: Comparison) -> None:
    rows = {row[1]: row for row in parse_grids(text.similarity_text(main))[0]}

    assert rows["shared.conv"][4] == ""
    assert rows["head.conv"][4] == ""
    assert rows["quant"][4] == "0.0313725"


def test_similarity_text_is_cut_not_rounded(main: Comparison) -> None:
    values = [row[3] for row in parse_grids(text.similarity_text(main))[0][1:] if row[3][0].isdigit()]
    cosines = [layer.accumulated.cosine for layer in main.layers if layer.accumulated]

    assert all(float(printed) <= cosine for printed, cosine in zip(values, cosines, strict=False))


def test_ordered_text_falls_in_last_column_with_empty_rows_last(main: Comparison) -> None:
    last = [row[-1] for row in parse_grids(text.ordered_similarity_text(main))[0][1:]]
    numbers = [float(cell) for cell in last if cell]

    assert numbers == sorted(numbers, reverse=True)
    assert "" not in last[: len(numbers)]
    assert len(last) == len(main.layers)


def test_statistic_text_lists_nan_first_and_sorts_by_range(main: Comparison) -> None:
    broken, forward, by_range = parse_grids(text.statistic_text(main.reference))

    assert broken[0][-1] == "NaN or Inf"
    assert [row[1] for row in broken[1:]] == ["head.conv", "head.conv"]
    assert [int(row[0]) for row in forward[1:]] == list(range(len(main.reference.tensors)))
    assert sorted(by_range) == sorted(forward)
    ranges = [max(abs(float(row[4])), abs(float(row[5]))) for row in by_range[1:]]
    assert ranges == sorted(ranges, reverse=True)
    assert forward[0] == "Module Index|Module Name|Module Type|Input/Output/Attr|Min|Max|Mean|Var|Scale|Dtype".split(
        "|"
    )


def test_statistic_text_without_nan_has_two_tables(report: ReportData) -> None:
    assert len(parse_grids(text.statistic_text(report.comparisons[1].test))) == 2


def test_qconfig_text_has_line_and_three_tables(main: Comparison) -> None:
    content = text.qconfig_text(main)
    outputs, weights, messages = parse_grids(content)

    assert content.startswith("Out dtype statistics: qint8: 13, activation = None: 1\n")
    assert outputs[0] == ["Module Name", "Module Type", "Input dtype", "out dtype", "ch_axis", "observer"]
    assert outputs[1][2] == "['qint8', 'qint8']"
    assert outputs[-1][2] == "qint8"
    assert weights[0] == ["Module Name", "Module Type", "weight dtype", "ch_axis", "observer"]
    assert messages[0] == ["Module Name", "Module Type", "Msg"]
    assert len(outputs) - 1 == 13 + 1  # adds up to the line above


def test_text_name_with_line_break_stays_on_one_line(main: Comparison) -> None:
    assert r"block.a\nb|c" in text.similarity_text(main)
    assert UNICODE in text.similarity_text(main)


def test_text_same_report_gives_same_text() -> None:
    first, second = rich_report().comparisons[0], rich_report().comparisons[0]

    assert all(write(first) == write(second) for write in TEXTS.values())
