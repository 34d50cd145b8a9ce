from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from profiler.records import ReportData
from profiler.report.write import WrittenFiles, write_report
from tests.report.sample_data import HOSTILE, big_report

pytestmark = pytest.mark.browser
SECTIONS = "error-picture similarity statistics weights called-counts unfused qconfig coverage".split()
NAMES = """
const rows = document.querySelectorAll("[data-panel=FvsQ][data-table=similarity] tbody tr")
return [...rows].map(row => row.cells[1].innerText)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, report: ReportData) -> WrittenFiles:
    return write_report(report, tmp_path_factory.mktemp("page"), make_zip=False)


@pytest.fixture
def show(browser: Any) -> Callable[..., Any]:
    """Opens a page at an anchor and waits for its script; the logs hold this page only."""

    def open_page(path: Path, anchor: str = "") -> Any:
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(path.resolve().as_uri() + anchor)
        return browser

    return open_page


def wait_for(browser: Any, script: str) -> Any:
    """Gives what the script returns, as soon as it is true."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        result = browser.execute_script(script)
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}; console: {browser.get_log('browser')}")


def requests(browser: Any) -> set[str]:
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return {
        item["params"]["request"]["url"].split("#")[0]
        for item in messages
        if item["method"] == "Network.requestWillBeSent"
    }


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_page_shows_each_section_and_fetches_nothing(show: Callable[..., Any], written: WrittenFiles) -> None:
    browser = show(written.html_path)
    for name in ["findings", *SECTIONS, "about"]:
        assert browser.execute_script(
            f"location.hash = {name!r}; return document.getElementById({name!r}).offsetHeight > 20"
        )
    wait_for(browser, "return document.querySelector('.figure').shadowRoot || document.querySelector('.figure div')")
    wait_for(browser, "return document.querySelectorAll('[data-panel=FvsQ] tbody tr').length > 30")

    assert {url for url in requests(browser) if not url.startswith("data:")} == {written.html_path.resolve().as_uri()}
    assert errors(browser) == []


def test_page_hostile_name_is_shown_as_text(show: Callable[..., Any], written: WrittenFiles) -> None:
    browser = show(written.html_path, "#similarity")

    assert HOSTILE in wait_for(browser, NAMES)
    assert HOSTILE in browser.execute_script("return document.querySelector('h1').innerText")
    assert browser.execute_script("return document.querySelectorAll('main td b, .headline b b, nav b').length") == 0


def test_page_folds_rows_and_keeps_state_in_hash(show: Callable[..., Any], written: WrittenFiles) -> None:
    browser = show(written.html_path, "#similarity")
    before = wait_for(browser, NAMES)
    browser.find_element("css selector", "[data-table=similarity] [data-fold=not_compared]").click()

    assert "aux.unused" not in before
    assert "aux.unused" in browser.execute_script(NAMES)
    anchor = browser.execute_script("return location.hash")
    assert "FvsQ.similarity.show=not_compared" in anchor
    assert "aux.unused" in wait_for(show(written.html_path, anchor), NAMES)


def test_page_switches_to_model_order_and_sorts_by_column(show: Callable[..., Any], written: WrittenFiles) -> None:
    browser = show(written.html_path, "#similarity")
    assert wait_for(browser, NAMES)[0] == HOSTILE

    buttons = browser.find_elements("css selector", "[data-panel=FvsQ][data-table=similarity] .segments button")
    buttons[1].click()
    assert browser.execute_script(NAMES)[0] == "quant"
    browser.find_elements("css selector", "[data-panel=FvsQ][data-table=similarity] th button")[9].click()
    assert browser.execute_script(NAMES)[0] == HOSTILE  # the largest op error, its bad end first
    assert (
        browser.execute_script("return document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    )


def test_page_filter_finds_folded_rows(show: Callable[..., Any], written: WrittenFiles) -> None:
    browser = show(written.html_path, "#similarity")
    wait_for(browser, NAMES)
    browser.find_element("css selector", "[data-panel=FvsQ][data-table=similarity] input").send_keys("UNUSED")

    assert browser.execute_script(NAMES) == ["aux.unused"]


def test_page_op_opens_beside_and_closes_with_escape(show: Callable[..., Any], written: WrittenFiles) -> None:
    browser = show(written.html_path, "#similarity")
    wait_for(browser, NAMES)
    browser.find_element("css selector", "[data-op='FvsQ.3']").click()

    facts = wait_for(browser, "const root = document.getElementById('op-view'); return !root.hidden && root.innerText")
    assert HOSTILE in facts
    assert "RG2 The output range is clipped" in facts
    assert "op=FvsQ.3" in browser.execute_script("return location.hash")
    bars = "return Bokeh.documents.map(d => d.get_model_by_name('test')).filter(Boolean)[0]?.data.top.length"
    assert wait_for(browser, bars) == 48
    browser.find_element("css selector", "body").send_keys("\ue00c")
    assert browser.execute_script("return document.getElementById('op-view').hidden")
    assert errors(browser) == []


def test_page_hash_of_other_comparison_shows_its_tab(show: Callable[..., Any], written: WrittenFiles) -> None:
    browser = show(written.html_path, "#QvsQ-similarity;op=QvsQ.2")

    wait_for(browser, "return !document.getElementById('QvsQ').hidden && document.getElementById('FvsQ').hidden")
    assert wait_for(browser, "return document.getElementById('op-name').innerText") == "shared.conv(1)"
    assert browser.execute_script("return document.querySelector('[aria-selected=true]').id") == "tab-QvsQ"


def test_page_point_in_picture_opens_its_folded_row(show: Callable[..., Any], written: WrittenFiles) -> None:
    browser = show(written.html_path)
    wait_for(browser, "return document.body.classList.contains('ready')")
    browser.execute_script("document.dispatchEvent(new CustomEvent('op-picked', {detail: 8}))")

    assert wait_for(browser, "return document.querySelector('.marked')?.cells[1].innerText") == "aux.unused"


def test_page_copy_button_says_what_it_did(show: Callable[..., Any], written: WrittenFiles) -> None:
    browser = show(written.html_path)
    wait_for(browser, "return document.body.classList.contains('ready')")
    browser.find_element("css selector", ".copy").click()

    assert wait_for(
        browser, "const text = document.querySelector('.copy').innerText; return text != 'Copy' && text"
    ) in (
        "Copied",
        "Selected",
    )


@pytest.mark.parametrize("name", ["similarity.html", "model0_statistic.html", "QvsQ/model1_statistic.html"])
def test_chart_page_draws_and_fetches_nothing(show: Callable[..., Any], written: WrittenFiles, name: str) -> None:
    path = written.html_path.parent / name
    browser = show(path)
    wait_for(browser, "return document.querySelector('#figure').childElementCount > 0")

    assert {url for url in requests(browser) if not url.startswith("data:")} == {path.resolve().as_uri()}
    assert errors(browser) == []


def test_page_two_thousand_ops_shows_first_rows_only(show: Callable[..., Any], tmp_path: Path) -> None:
    from profiler.report.render_html import render_page

    path = tmp_path / "big.html"
    path.write_text(render_page(big_report(2000)), encoding="utf-8")
    browser = show(path, "#similarity")
    wait_for(browser, NAMES)

    assert browser.execute_script("return document.querySelectorAll('tr').length") < 400
    assert browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd") < 5000
    assert errors(browser) == []
