"""What fails late or looks like a mistake ends in a note, not in the loss of the report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from profiler import model_profiler
from profiler.quant import get_march, set_march
from profiler.quant.march import March
from profiler.quant.record.prepare import UNCALLED


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


BATCHES = [torch.randn(2, 1, 8, 8) for _ in range(2)]


def test_evaluate_that_fails_on_a_later_stage_is_a_note(tmp_path: Path) -> None:
    def evaluate(model: nn.Module) -> float:
        if not any(True for _ in model.parameters()):
            raise TypeError("no parameters")
        return 0.5

    report = model_profiler(make_net(), BATCHES, evaluate=evaluate, out_dir=tmp_path, make_zip=False)

    assert [m.stage for m in report.stage_metrics] == ["float", "calib"]
    assert any("evaluate raised TypeError on the quantized model: no parameters" in note for note in report.notes)


class WithLoss(nn.Module):
    """Computes a loss if it gets labels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.net(x)
        return logits if labels is None else nn.functional.cross_entropy(logits, labels)


def test_labels_that_fill_an_optional_argument_are_a_note(tmp_path: Path) -> None:
    pairs = [(x, torch.zeros(2, dtype=torch.int64)) for x in BATCHES]

    report = model_profiler(WithLoss(), pairs, out_dir=tmp_path, make_zip=False)

    assert any("went to the optional arguments labels of forward" in note for note in report.notes)


class Sparse(nn.Module):
    """Has a sparse tensor in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return torch.relu(y.to_sparse().to_dense())


def test_sparse_tensors_in_a_forward_do_not_end_the_run(tmp_path: Path) -> None:
    report = model_profiler(Sparse().eval(), torch.randn(4, 8), out_dir=tmp_path, make_zip=False)

    assert report.coverage.compared > 0


@pytest.mark.parametrize("name", ["BAYES", "bayes_e", "nash-e", March.NASH_M])
def test_march_names_are_read_in_any_case(name: str) -> None:
    set_march(name)

    assert get_march() in tuple(March)


class Branching(nn.Module):
    """A branch that ordinary data never takes; its forward cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rare, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        if float(y.mean()) > 100:
            y = self.rare(y)
        logits: Tensor = self.fc(y.flatten(1))
        return logits


def test_branch_that_no_batch_took_stays_in_float_and_the_rest_is_converted(tmp_path: Path) -> None:
    report = model_profiler(Branching().eval(), BATCHES, out_dir=tmp_path, make_zip=False)

    assert [c.mode for c in report.data.comparisons] == ["FvsQ", "QvsQ"]
    assert [e.reason for e in report.data.effects if e.op == "rare"] == [UNCALLED]
