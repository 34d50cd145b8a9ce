"""Healthy networks have no finding that asks for a change, in eager and in FX, whatever their weights."""

from __future__ import annotations

import pytest
import torch

from tests.analysis.toys import (
    Mlp,
    PlainCnn,
    ResidualCnn,
    built,
    calibrated,
    calibrated_fx,
    configured,
    findings_of,
    headlines,
    images,
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [PlainCnn, ResidualCnn])
def test_healthy_cnn_has_no_warning(kind: type, seed: int) -> None:
    batches = images(seed=seed + 10)
    eager = calibrated(configured(built(kind(), seed)), batches)
    traced = calibrated_fx(built(kind(), seed), batches)

    assert headlines(findings_of(eager, batches)) == []
    assert headlines(findings_of(traced, batches)) == []


@pytest.mark.parametrize("seed", range(3))
def test_healthy_mlp_has_no_warning(seed: int) -> None:
    batches = list(torch.randn(4, 32, 16, generator=torch.Generator().manual_seed(100 + seed)))

    assert headlines(findings_of(calibrated_fx(built(Mlp(), seed), batches), batches)) == []
