"""The samples as a user profiles them: every planted fault is named, and nothing that is not planted."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from profiler import ProfileReport
from sample_models import mobilenet_v2, pitfalls
from sample_models.pitfalls import FAULTS
from tests.analysis.toys import findings_of, headlines


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    return pitfalls.profile(tmp_path_factory.mktemp("pitfalls"))


@pytest.fixture(scope="module")
def healthy_report(tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    return mobilenet_v2.profile(tmp_path_factory.mktemp("mobilenet_v2"), make_zip=False)


def planted(without: str = "") -> set[tuple[str, str]]:
    return {(fault.rule, fault.op) for name, fault in FAULTS.items() if name != without}


def test_headlines_are_the_planted_faults(report: ProfileReport) -> None:
    found = headlines(report.findings)

    assert {(rule, op) for rule, _, op in found} == planted()
    assert len(found) == len(FAULTS)


def test_what_follows_from_a_fault_stands_under_it(report: ProfileReport) -> None:
    related = {f.op: " ".join(f.related) for f in report.findings}

    assert "SE2" in related["branches.shared.conv"]
    assert "SE2 W at mix.relu_0" in related["mix.conv"]
    assert "RG7" in related["wide.conv"]


def test_every_headline_says_what_to_do(report: ProfileReport) -> None:
    for finding in report.findings:
        if finding.severity == "I":
            continue
        assert finding.advice
        assert finding.evidence
        assert finding.source.startswith("sample_models/")
        assert finding.patch is not None
        compile(finding.patch.code, finding.id, "exec")


def test_verdict_says_the_loss_and_the_first_cause(report: ProfileReport) -> None:
    metrics = {m.stage: m.value for m in report.stage_metrics}

    assert metrics["float"] - metrics["quantized"] >= 5
    assert report.verdict.startswith("Bad: the metric falls from 98.49 (float) to ")
    assert "6 findings, first: SH1 at branches.shared.conv" in report.verdict


def test_report_is_complete(report: ProfileReport) -> None:
    assert report.html_path is not None
    assert report.zip_path is not None
    assert ProfileReport.load(report.html_path.parent).findings == report.findings
    assert report.coverage.executed == report.coverage.compared + sum(report.coverage.reasons.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_repairing_one_fault_removes_its_finding_alone(fault: str) -> None:
    calib_model = pitfalls.calibrate(pitfalls.prepare(pitfalls.load({fault})))

    found = headlines(findings_of(calib_model, pitfalls.calibration_batches()[:4]))

    assert {(rule, op) for rule, _, op in found} == planted(without=fault)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_alone_is_the_only_finding(fault: str) -> None:
    calib_model = pitfalls.calibrate(pitfalls.prepare(pitfalls.load(set(FAULTS) - {fault})))

    found = headlines(findings_of(calib_model, pitfalls.calibration_batches()[:4]))

    assert [(rule, op) for rule, _, op in found] == [(FAULTS[fault].rule, FAULTS[fault].op)]


def test_repaired_network_has_no_finding() -> None:
    calib_model = pitfalls.calibrate(pitfalls.prepare(pitfalls.load(True)))

    assert headlines(findings_of(calib_model, pitfalls.calibration_batches()[:4])) == []


def test_healthy_network_loses_at_most_a_point_and_has_no_finding(healthy_report: ProfileReport) -> None:
    metrics = {m.stage: m.value for m in healthy_report.stage_metrics}

    assert metrics["float"] - min(metrics.values()) <= 1.0
    assert not any(math.isnan(value) for value in metrics.values())
    assert headlines(healthy_report.findings) == []
    assert healthy_report.verdict.startswith("Healthy: ")
