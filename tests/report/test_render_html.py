from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from profiler.records import Comparison, MetricInfo, ReportData
from profiler.report.cells import Texts
from profiler.report.figures import similarity_picture
from profiler.report.limits import Limits
from profiler.report.op_details import DIGITS, LABELS, op_details
from profiler.report.render_html import render_chart_page, render_page
from profiler.report.similarity_table import similarity_table
from tests.report.sample_data import HOSTILE, METRICS, big_report, rich_report

SECTIONS = "error-picture similarity statistics weights called-counts unfused qconfig coverage".split()


class Page(HTMLParser):
    """Collects ids, local links, what would be fetched, and the scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._script: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "a":
            self.links.append(values["href"] or "")
        self.fetched += [str(values[key]) for key in ("src", "srcset", "action") if values.get(key)]
        if tag == "link":
            self.fetched.append(str(values["href"]))
        self._script = values if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts.append((self._script, data))
        else:
            self.text += data

    @property
    def data(self) -> dict[str, object]:
        return next(json.loads(text) for attrs, text in self.scripts if attrs.get("id") == "page-data")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def text(report: ReportData) -> str:
    return render_page(report)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_render_page_has_each_section_once(page: Page) -> None:
    expected = ["findings", "about", *SECTIONS, *(f"QvsQ-{name}" for name in SECTIONS)]

    assert [page.ids.count(name) for name in expected] == [1] * len(expected)
    assert len(page.ids) == len(set(page.ids))


def test_render_page_has_no_dead_link(page: Page) -> None:
    targets = {link.removeprefix("#").split(";")[0] for link in page.links}

    assert targets <= set(page.ids)
    assert all(link.startswith("#") for link in page.links)


def test_render_page_fetches_nothing(page: Page, text: str) -> None:
    assert set(page.fetched) == {"data:,"}
    assert "@import" not in text.split("</style>")[0]
    assert "url(" not in text.split("</style>")[0]


def test_render_page_hostile_name_is_text_only(page: Page) -> None:
    inert = [(attrs, text) for attrs, text in page.scripts if attrs.get("type") == "application/json"]

    assert HOSTILE in page.text
    assert len(inert) == 4  # page data, histogram and one figure per comparison, none cut short
    assert all(json.loads(text) for _, text in inert)


def test_render_page_first_screen_names_verdict_metrics_and_findings(page: Page, report: ReportData) -> None:
    assert report.verdict in page.text
    assert "0.9999" in page.text
    assert "1.0000" not in page.text
    assert all(finding.title in page.text and finding.advice in page.text for finding in report.findings)
    assert "change the config and calibrate again" in page.text


def test_render_page_same_report_gives_same_bytes(text: str) -> None:
    assert render_page(rich_report()) == text


def test_render_page_empty_report_has_about_and_verdict() -> None:
    page = Page(render_page(ReportData("empty", "Nothing was compared.", "2026-01-01")))

    assert "Nothing was compared." in page.text
    assert {"findings", "about"} <= set(page.ids)


def test_render_page_two_thousand_ops_stays_small() -> None:
    assert len(render_page(big_report(2000)).encode()) <= 6_000_000


def test_render_chart_page_hostile_name_is_text_only(report: ReportData) -> None:
    figure = similarity_picture(report.comparisons[0])
    page = Page(render_chart_page(HOSTILE, "subtitle", figure))

    assert HOSTILE in page.text
    assert set(page.fetched) == {"data:,"}
    assert HOSTILE in json.dumps(json.loads(page.scripts[0][1]))


@pytest.fixture(scope="module")
def main(report: ReportData) -> Comparison:
    return report.comparisons[0]


def test_similarity_table_sorts_by_work_needed(main: Comparison, report: ReportData) -> None:
    table = similarity_table(main, report.findings, Limits(), Texts())
    worst = table.orders[0].rows
    assert worst is not None

    assert worst[0] == 3  # the finding of severity E
    assert set(worst[1:4]) == {0, 1, 2}  # severity W, the shared module's two calls among them
    assert sorted(worst) == list(range(len(main.layers)))


def test_similarity_table_shows_culprits_and_folds_the_rest() -> None:
    data = big_report(60)
    table = similarity_table(data.comparisons[0], data.findings, Limits(), Texts())

    assert sorted(set(table.folds)) == ["healthy", "inherited", "shown"]
    assert sum(fold == "shown" for fold in table.folds) == len(data.findings)
    assert all(table.folds[row] != "healthy" for row, _ in table.flags)


def test_similarity_table_shape_mismatch_is_shown_and_uncalled_folded(main: Comparison, report: ReportData) -> None:
    table = similarity_table(main, report.findings, Limits(), Texts())
    folds = {layer.name: fold for layer, fold in zip(main.layers, table.folds, strict=True)}

    assert folds["head.resize"] == "shown"
    assert folds["aux.unused"] == "not_compared"


def test_similarity_table_missing_value_gives_reason(main: Comparison) -> None:
    texts = Texts()
    table = similarity_table(main, (), Limits(), texts)

    def reason(row: int, column: int) -> str:
        cell = table.rows[row][column]
        assert isinstance(cell, int)
        assert cell < 0
        return texts.items[-1 - cell]

    assert reason(1, 6) == "one scale per channel"
    assert reason(7, 6) == "the output is not quantized"
    assert reason(8, 4) == "uncalled: the module did not run in either forward"


def test_similarity_table_uncalibrated_scale_is_never_shown_as_a_number(main: Comparison) -> None:
    params = main.layers[0].qparams
    assert params is not None
    layer = replace(main.layers[0], qparams=replace(params, scale=(1.0,), is_calibrated=False))
    texts = Texts()
    table = similarity_table(replace(main, layers=(layer,)), (), Limits(), texts)

    assert table.rows[0][6] == texts.missing("not calibrated")


def test_limits_come_from_the_metrics() -> None:
    assert Limits.of((*METRICS, MetricInfo("atol_scales", "scales", False, 7.0, ""))) == Limits(20, 0.995, 7)
    assert Limits.of(()) == Limits()


def test_op_details_histograms_share_bins(main: Comparison, report: ReportData) -> None:
    details = op_details(main.layers, report.findings, Texts())
    low, high, reference, test, range_low, range_high = details["histograms"][0]

    assert low < -4 < 4 < high
    assert len(reference) == len(test) == 48
    assert DIGITS[-1] in reference
    assert DIGITS[-1] in test
    assert (range_low, range_high) == (-4.0157, 3.9843)
    assert details["histograms"][8] is None
    assert all(len(facts) == len(LABELS) for facts in details["facts"])


def test_op_details_shared_call_lists_the_finding_of_its_module(main: Comparison, report: ReportData) -> None:
    assert op_details(main.layers, report.findings, Texts())["findings"]["2"] == [1]
